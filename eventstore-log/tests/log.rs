//! The behaviour of a log without faults.

use std::ops::Range;
use std::sync::Arc;

use eventstore_log::{
    Directory, DiskDirectory, Error, Group, Known, Log, MemoryDirectory, Opened, Options, Page, Position,
};

const ID: [u8; 16] = [7; 16];

fn content(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|index| (number as usize * 31 + index) as u8).collect()
}

/// Varying lengths, so that records cross blocks in all ways.
fn len_of(number: u64) -> usize {
    match number % 17 {
        0 => 0,
        5 => 9000,
        11 => 40_000,
        rest => (rest * 37) as usize,
    }
}

fn open(files: &Arc<dyn Directory>, options: &Options) -> Opened {
    Log::open(Arc::clone(files), ID, options, Known { synced: 0 }, 0, &mut |_, _| {}).expect("opened")
}

fn append(opened: &mut Opened, count: u64, sync: bool) -> Position {
    let mut group = Group::default();
    let first = opened.log.last() + 1;
    group.begin(first);
    for number in first..first + count {
        group.push(&[&content(number, len_of(number))]);
    }
    opened.appender.as_mut().expect("sound").commit(&mut group, sync).expect("committed")
}

/// Reads the range in every way and checks the contents.
fn check(log: &Log, range: Range<u64>, bytes: usize, records: usize) {
    let mut next = range.start;
    let mut page = Page::default();
    while next < range.end {
        page.clear();
        log.read(next..range.end, bytes, records, &mut page).expect("read");
        assert!((1..=records).contains(&page.records.len()), "{next} {range:?}");
        for (number, got) in page.contents() {
            assert_eq!((number, got), (next, content(next, len_of(next)).as_slice()));
            next += 1;
        }
    }
    let mut end = range.end;
    while range.start < end {
        page.clear();
        log.read_backward(range.start..end, bytes, records, &mut page).expect("read");
        assert!((1..=records).contains(&page.records.len()), "{end} {range:?}");
        for (number, got) in page.contents() {
            end -= 1;
            assert_eq!((number, got), (end, content(end, len_of(end)).as_slice()));
        }
    }
}

fn check_one(log: &Log, number: u64) {
    let mut page = Page { bytes: b"before".to_vec(), records: Vec::new() };
    log.read_one(number, &mut page).expect("read");
    assert_eq!(page.bytes.len(), 6 + len_of(number));
    assert!(page.contents().eq([(number, content(number, len_of(number)).as_slice())]), "{number}");
}

/// Reads records from all over the log together.
fn check_many(log: &Log, bytes: usize) {
    let last = log.last();
    let mut rest: Vec<u64> = (1..=last).map(|number| number * 7919 % last + 1).collect();
    let mut page = Page::default();
    while !rest.is_empty() {
        page.clear();
        log.read_many(&rest, bytes, &mut page).expect("read");
        let count = page.records.len();
        assert!(page.contents().map(|(number, _)| number).eq(rest.drain(..count)));
        for (number, got) in page.contents() {
            assert_eq!(got, content(number, len_of(number)));
        }
        let before_last = page.records[..count - 1].last().map_or(0, |(_, range)| range.end);
        assert!(before_last < bytes.max(1), "it ends with the one that reaches {bytes}");
        assert!(page.bytes.len() >= bytes || rest.is_empty());
    }
    log.read_many(&[1, last + 1, 2], 10_000, &mut page).expect("read");
    assert_eq!(page.records.pop().map(|(number, _)| number), Some(1), "the next is not there");
}

fn write_and_read(files: &Arc<dyn Directory>, options: &Options) {
    let mut opened = open(files, options);
    let mut positions = Vec::new();
    for group in 0..60 {
        positions.push(append(&mut opened, 1 + group % 7, group % 3 == 0));
    }
    let last = opened.log.last();
    assert!(opened.log.segments().len() > 3);
    for _ in 0..2 {
        check(&opened.log, 1..last + 1, 1 << 20, usize::MAX);
        check(&opened.log, 1..last + 1, 3000, 5);
        check(&opened.log, 17..last - 3, 0, 1);
        (1..=last).for_each(|number| check_one(&opened.log, number));
        [0, 3000, 1 << 20].into_iter().for_each(|bytes| check_many(&opened.log, bytes));
    }
    let mut sealed = Vec::new();
    let blob_of = |range: Range<u64>| format!("{range:?}").into_bytes();
    let at = positions[50];
    opened
        .log
        .checkpoint(at, b"blob", &mut |range| {
            sealed.push(range.clone());
            blob_of(range)
        })
        .expect("made");
    assert!(!sealed.is_empty());
    assert_eq!(opened.log.segment_blob(1).expect("read"), Some(blob_of(sealed[0].clone())));
    assert_eq!(opened.log.segment_blob(last).expect("read"), None);
    check(&opened.log, 1..last + 1, 1 << 20, usize::MAX);
    (1..=last).for_each(|number| check_one(&opened.log, number));
    let segments = opened.log.segments();
    drop(opened);

    let mut visited = Vec::new();
    let behind = at.record() - 10;
    let mut again = Log::open(Arc::clone(files), ID, options, Known { synced: 0 }, behind, &mut |number, got| {
        assert_eq!(got, content(number, len_of(number)));
        visited.push(number);
    })
    .expect("opened");
    assert_eq!(visited, (behind + 1..=last).collect::<Vec<_>>());
    let tail = again.tail.clone().expect("a checkpoint");
    assert_eq!((tail.record, tail.blob.as_slice()), (at.record(), b"blob".as_slice()));
    assert_eq!(again.recovery.scanned_records, last - at.record());
    assert_eq!(again.damage, None);
    let ranges = |segments: &[eventstore_log::Segment]| segments.iter().map(|s| s.records.clone()).collect::<Vec<_>>();
    assert_eq!(ranges(&again.log.segments()), ranges(&segments));
    check(&again.log, 1..last + 1, 1 << 20, usize::MAX);
    check_many(&again.log, 100_000);
    (1..=last).for_each(|number| check_one(&again.log, number));
    append(&mut again, 3, true);
    check(&again.log, 1..last + 4, 1 << 20, usize::MAX);
}

#[test]
fn what_was_written_is_read_in_memory() {
    let files: Arc<dyn Directory> = Arc::new(MemoryDirectory::default());
    write_and_read(&files, &Options { segment_size: 256 << 10, ..Options::default() });
}

#[test]
fn what_was_written_is_read_on_disk() {
    for space_ahead in [0, 1 << 20] {
        let temporary = tempfile::tempdir().expect("a directory");
        let files: Arc<dyn Directory> = Arc::new(DiskDirectory::new(temporary.path()));
        write_and_read(&files, &Options { segment_size: 256 << 10, space_ahead, ..Options::default() });
    }
}

#[test]
fn a_log_that_is_closed_leaves_no_space_behind_it() {
    let temporary = tempfile::tempdir().expect("a directory");
    let files: Arc<dyn Directory> = Arc::new(DiskDirectory::new(temporary.path()));
    let mut opened = open(&files, &Options::default());
    for _ in 0..40 {
        append(&mut opened, 5, true);
    }
    let position = opened.log.position();
    opened.appender.take().expect("sound").close();
    let newest = opened.log.segments().pop().expect("segments");
    let names = files.list().expect("listed");
    assert_eq!(names.len() as u64, newest.number, "{names:?}");
    let len = std::fs::metadata(temporary.path().join(format!("{:010}-0.seg", newest.number))).expect("there").len();
    assert_eq!(len, newest.bytes);
    assert_eq!(position.record(), 200);
    assert_eq!(opened.log.len_bytes(), opened.log.segments().iter().map(|segment| segment.bytes).sum::<u64>());
}

#[test]
fn an_empty_group_is_a_sync_and_no_frame() {
    let files: Arc<dyn Directory> = Arc::new(MemoryDirectory::default());
    let mut opened = open(&files, &Options::default());
    append(&mut opened, 1, false);
    assert_eq!((opened.log.last(), opened.log.synced()), (1, 0));
    let mut group = Group::default();
    group.begin(2);
    let appender = opened.appender.as_mut().expect("sound");
    let position = appender.commit(&mut group, true).expect("synced");
    assert_eq!((position, opened.log.last(), opened.log.synced()), (opened.log.position(), 1, 1));
    group.begin(3);
    group.push(&[b"x"]);
    assert!(appender.commit(&mut group, true).is_err(), "it does not follow");
    assert_eq!(opened.log.last(), 1);
}

#[test]
fn nothing_is_read_where_there_is_nothing() {
    let files: Arc<dyn Directory> = Arc::new(MemoryDirectory::default());
    let mut opened = open(&files, &Options::default());
    for _ in 0..2 {
        let mut page = Page::default();
        let last = opened.log.last();
        opened.log.read(last + 1..u64::MAX, 100, 100, &mut page).expect("nothing");
        opened.log.read(0..0, 100, 100, &mut page).expect("nothing");
        opened.log.read(1..9, 100, 0, &mut page).expect("nothing");
        opened.log.read_backward(last + 1..u64::MAX, 100, 100, &mut page).expect("nothing");
        opened.log.read_backward(1..9, 100, 0, &mut page).expect("nothing");
        opened.log.read_one(0, &mut page).expect("nothing");
        opened.log.read_one(last + 1, &mut page).expect("nothing");
        assert!(page.records.is_empty() && page.bytes.is_empty());
        append(&mut opened, 3, false);
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let options = Options { segment_size: 1, ..Options::default() };
    let files = Arc::new(MemoryDirectory::default());
    let opened = Log::open(files, ID, &options, Known::default(), 0, &mut |_, _| {});
    assert!(matches!(opened, Err(Error::Unsupported { .. })));
}
