//! Damage of every kind is reported, and no record is ever wrong.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Files, directory, files};
use eventstore_log::{Directory, Error, Group, Known, Log, MemoryDirectory, Opened, Options, Page};

const ID: [u8; 16] = [5; 16];
type Records = Vec<(u64, Vec<u8>)>;

fn options() -> Options {
    Options { segment_size: 64 << 10, ..Options::default() }
}

fn segment(number: u64) -> String {
    format!("{number:010}-0.seg")
}

fn content(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|index| (number as usize * 7 + index * 3) as u8).collect()
}

/// The result of opening, and the visited records.
fn try_open(files: &Files, known: u64) -> (Result<Opened, Error>, Records) {
    let mut visited = Vec::new();
    let directory = Arc::new(directory(files));
    let opened = Log::open(directory, ID, &options(), Known { synced: known }, 0, &mut |number, content| {
        visited.push((number, content.to_vec()));
    });
    (opened, visited)
}

fn append(opened: &mut Opened, lens: &[usize]) {
    let mut group = Group::default();
    group.begin(opened.log.last() + 1);
    lens.iter().for_each(|len| group.push(&[&content(group.next(), *len)]));
    opened.appender.as_mut().unwrap().commit(&mut group, true).unwrap();
}

/// Four segments of six groups with three records each, and the number of records. With footers, if requested.
fn large(is_sealed: bool) -> (Files, u64) {
    let memory = MemoryDirectory::default();
    let mut opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {}).unwrap();
    (0..24).for_each(|_| append(&mut opened, &[3000, 4000, 3100]));
    assert_eq!(opened.log.segments().len(), 4);
    if is_sealed {
        opened.log.checkpoint(opened.log.position(), b"tail", &mut |_| b"blob".to_vec()).unwrap();
    }
    let last = opened.log.last();
    drop(opened);
    (files(&memory), last)
}

fn lens_of_large(number: u64) -> usize {
    [3000, 4000, 3100][(number as usize - 1) % 3]
}

fn is_corrupt(result: &Result<Opened, Error>, record: u64, name: &str) -> bool {
    matches!(result, Err(Error::Corrupt { record: Some(at), reason }) if *at == record && reason.contains(name))
}

/// Checks that everything readable is right, in every way of reading. Returns the numbers of the unreadable records.
fn unreadable(opened: &Opened, last: u64, len: impl Fn(u64) -> usize) -> Vec<u64> {
    let check = |page: &Page| {
        page.contents().for_each(|(number, got)| assert!(got == content(number, len(number)), "{number}"))
    };
    let (mut lost, mut lost_backward, mut lost_one) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = 1;
    while next <= last {
        let mut page = Page::default();
        match opened.log.read(next..last + 1, 20_000, usize::MAX, &mut page) {
            Ok(()) if page.records.is_empty() => lost.push(next),
            Ok(()) => check(&page),
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { record: Some(at), .. } if at == next), "{error:?}");
                lost.push(next);
            }
        }
        next = page.records.last().map_or(next, |record| record.0) + 1;
    }
    let mut end = last + 1;
    while end > 1 {
        let mut page = Page::default();
        match opened.log.read_backward(1..end, 20_000, usize::MAX, &mut page) {
            Ok(()) if page.records.is_empty() => lost_backward.push(end - 1),
            Ok(()) => check(&page),
            Err(_) => lost_backward.push(end - 1),
        }
        end = page.records.last().map_or(end - 1, |record| record.0);
    }
    for number in 1..=last {
        let mut page = Page::default();
        match opened.log.read_one(number, &mut page) {
            Ok(()) if page.records.is_empty() => lost_one.push(number),
            Ok(()) => check(&page),
            Err(_) => lost_one.push(number),
        }
    }
    let mut lost_many = Vec::new();
    let mut rest: Vec<u64> = (0..last).map(|number| number * 7919 % last + 1).collect();
    while !rest.is_empty() {
        let mut page = Page::default();
        let read = opened.log.read_many(&rest, 20_000, &mut page);
        check(&page);
        assert!(page.contents().map(|(number, _)| number).eq(rest.drain(..page.records.len())), "in their order");
        if page.records.is_empty() {
            lost_many.push(rest.remove(0));
        } else {
            read.unwrap();
        }
    }
    lost_backward.reverse();
    lost_many.sort_unstable();
    assert_eq!((&lost_backward, &lost_one, &lost_many), (&lost, &lost, &lost));
    lost
}

#[test]
fn a_log_that_is_sound_opens() {
    for is_sealed in [false, true] {
        let (files, last) = large(is_sealed);
        let (opened, visited) = try_open(&files, last);
        let opened = opened.unwrap();
        assert_eq!((opened.log.last(), visited.len() as u64, opened.recovery.rewritten_bytes), (last, last, 0));
        assert_eq!(unreadable(&opened, last, lens_of_large), []);
        assert!(opened.appender.is_some());
    }
}

#[test]
fn a_missing_segment_is_named() {
    for is_sealed in [false, true] {
        for missing in 1..4 {
            let (mut files, last) = large(is_sealed);
            files.remove(&segment(missing));
            let (opened, _) = try_open(&files, last);
            assert!(is_corrupt(&opened, missing * 18 - 17, &format!("segment {missing} is missing")), "{opened:?}");
        }
        let (mut files, last) = large(is_sealed);
        files.remove(&segment(4));
        let opened = try_open(&files, last).0.unwrap();
        assert_eq!(opened.damage.as_ref().map(|damage| damage.record), Some(55));
        assert!(opened.appender.is_none());
        assert_eq!(unreadable(&opened, 54, lens_of_large), []);
    }
}

#[test]
fn segments_of_other_logs_and_lives_are_refused() {
    for is_sealed in [false, true] {
        let (sound, last) = large(is_sealed);
        let other_life = large(is_sealed).0;
        for number in 1..=4 {
            let mut files = sound.clone();
            // The id is in the header, which must be right otherwise.
            let bytes = files.get_mut(&segment(number)).unwrap();
            bytes[8] ^= 1;
            let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
            bytes[60..64].copy_from_slice(&crc);
            let opened = try_open(&files, last).0;
            assert!(is_corrupt(&opened, number * 18 - 17, "belongs to another log"), "{opened:?}");

            let mut files = sound.clone();
            files.insert(segment(number), other_life[&segment(number)].clone());
            let opened = try_open(&files, last).0;
            let is_refused = is_corrupt(&opened, number * 18 - 17, "does not follow");
            // The first segment is found out by the next.
            let is_first = number == 1 && is_corrupt(&opened, 19, "does not follow");
            assert!(is_refused || is_first, "{number} {opened:?}");
        }
        let mut files = sound.clone();
        let (two, three) = (sound[&segment(2)].clone(), sound[&segment(3)].clone());
        files.extend([(segment(2), three), (segment(3), two)]);
        let opened = try_open(&files, last).0;
        assert!(is_corrupt(&opened, 19, "segment 2 was segment 3"), "{opened:?}");
    }
}

#[test]
fn segments_of_zeros_are_damage_where_records_were() {
    for is_sealed in [false, true] {
        let (sound, last) = large(is_sealed);
        for number in 1..=4 {
            let mut files = sound.clone();
            files.get_mut(&segment(number)).unwrap().fill(0);
            let opened = try_open(&files, last).0;
            assert!(
                is_corrupt(&opened, number * 18 - 17, "zeros") || is_corrupt(&opened, 55, "no header"),
                "{opened:?}"
            );
        }
    }
    let (mut files, _) = large(false);
    files.insert(segment(5), vec![0; 5000]);
    let opened = try_open(&files, 72).0.unwrap();
    assert_eq!((opened.log.last(), opened.damage), (72, None));
    let names = |opened: &Opened| opened.log.segments().len();
    assert_eq!(names(&try_open(&files, 72).0.unwrap()), 4);
}

/// Damages a record or a frame header in the middle of each segment: what follows is readable.
#[test]
fn what_is_behind_damage_can_be_read() {
    let frame = 40 + 8 * 3 + 10_100;
    let frame = frame + (8 - frame % 8) % 8;
    for (is_sealed, number) in [(false, 1), (false, 2), (false, 4), (true, 4)] {
        let (sound, last) = large(is_sealed);
        let first = number * 18 - 17;
        let damaged = |at: usize| {
            let mut files = sound.clone();
            files.get_mut(&segment(number)).unwrap()[at] ^= 0x10;
            // The checkpoint would hide the damage from recovery, and the reader would report it.
            files.remove("tail");
            let (opened, visited) = try_open(&files, last);
            let opened = opened.unwrap();
            assert!(opened.appender.is_none());
            assert_eq!(opened.log.last(), last);
            let lost = unreadable(&opened, last, lens_of_large);
            let not_visited: Vec<_> = (1..=last).filter(|record| visited.iter().all(|(at, _)| at != record)).collect();
            // Records may be valid although their frame's header is not.
            assert!(lost == not_visited || lost.is_empty(), "{lost:?} {not_visited:?}");
            assert_eq!(opened.damage.as_ref().map(|damage| damage.record), not_visited.first().copied());
            not_visited
        };
        let second = 64 + frame;
        assert_eq!(damaged(second + 20), [first + 3, first + 4, first + 5], "a header");
        assert_eq!(damaged(second + 40), [first + 3], "a checksum");
        assert_eq!(damaged(second + 40 + 100), [first + 3], "a content");
        assert_eq!(damaged(second + 40 + 8 + 3000 + 10), [first + 4], "a content");
        assert_eq!(damaged(second + 40 + 8 + 3000 + 5), [first + 4, first + 5], "a length");
        assert_eq!(damaged(second + 40 + 8 + 3000 + 8 + 4000 + 10), [first + 5], "the last content");
        if number < 4 {
            assert_eq!(damaged(64 + 5 * frame + 20), [first + 15, first + 16, first + 17], "the segment's last");
        }
    }
}

/// Sealed segments are not read when the log is opened, unless their records are requested.
#[test]
fn damage_in_a_sealed_segment_is_found_where_it_is_read() {
    let (mut files, last) = large(true);
    files.get_mut(&segment(2)).unwrap()[64 + 40 + 100] ^= 1;
    let directory = Arc::new(directory(&files));
    let opened =
        Log::open(directory, ID, &options(), Known { synced: last }, last, &mut |_, _| panic!("not asked for"))
            .unwrap();
    assert_eq!(opened.damage, None);
    assert_eq!(unreadable(&opened, last, lens_of_large), [19]);
    let mut found = Vec::new();
    let mut count = 0;
    let mut visit = |number, got: &[u8]| {
        assert!(got == content(number, lens_of_large(number)));
        count += 1;
    };
    for number in 1..=4 {
        opened.log.check_segment(number, &mut visit, &mut |record, _| found.push(record), &mut |_| true).unwrap();
    }
    assert_eq!((found, count), (vec![19], last - 1));
    let opened = try_open(&files, last).0.unwrap();
    assert_eq!(opened.damage.map(|damage| damage.record), Some(19));
    assert!(opened.appender.is_none());
}

/// A small log with three segments. The first has a footer, and the checkpoint is at the end of the second.
fn small() -> (Files, u64) {
    let memory = MemoryDirectory::default();
    let mut opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {}).unwrap();
    append(&mut opened, &[5, 0, 20]);
    append(&mut opened, &[30]);
    // Nearly as large as a segment, so that it fills the second one.
    append(&mut opened, &[65_500]);
    opened.log.checkpoint(opened.log.position(), b"tail", &mut |_| b"blob".to_vec()).unwrap();
    append(&mut opened, &[11, 3]);
    append(&mut opened, &[9]);
    assert_eq!(opened.log.segments().len(), 3);
    drop(opened);
    (files(&memory), 8)
}

/// A log with one segment.
fn smallest() -> (Files, u64) {
    let memory = MemoryDirectory::default();
    let mut opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {}).unwrap();
    append(&mut opened, &[5, 0, 20]);
    append(&mut opened, &[30]);
    drop(opened);
    (files(&memory), 4)
}

fn lens_of_small(number: u64) -> usize {
    [5, 0, 20, 30, 65_500, 11, 3, 9][number as usize - 1]
}

/// Checks what holds for any damage, if it is known how far the log was synced.
fn check_told(files: &Files, last: u64, what: &str) {
    for is_known in [true, false] {
        let (opened, visited) = try_open(files, if is_known { last } else { 0 });
        let opened = match opened {
            Ok(opened) => opened,
            Err(Error::Corrupt { reason, .. }) => {
                assert!(!reason.is_empty());
                continue;
            }
            Err(error) => panic!("{what}: {error:?}"),
        };
        assert!(visited.is_sorted_by(|a, b| a.0 < b.0), "{what}");
        for (number, got) in &visited {
            assert!(*got == content(*number, lens_of_small(*number)), "{what}: {number}");
        }
        let lost = unreadable(&opened, opened.log.last(), lens_of_small);
        assert!(opened.log.last() <= last);
        assert_eq!(opened.damage.is_some(), opened.appender.is_none());
        if is_known && opened.damage.is_none() {
            assert_eq!((opened.log.last(), lost), (last, vec![]), "{what}");
        }
        if opened.damage.is_none() {
            assert_eq!(visited.len() as u64, opened.log.last(), "{what}");
        }
    }
}

fn offsets(len: usize) -> impl Iterator<Item = usize> {
    // The middle of the large record is like any other content.
    (0..len).filter(move |at| *at < 260 || *at + 100 > len || at % 4093 == 0)
}

#[test]
fn every_flipped_bit_is_told_or_does_no_harm() {
    for ((sound, last), bits) in [(smallest(), 8), (small(), 1)] {
        for (name, bytes) in &sound {
            for (at, bit) in offsets(bytes.len()).flat_map(|at| (0..bits).map(move |bit| (at, (at + bit) % 8))) {
                let mut files = sound.clone();
                files.get_mut(name).unwrap()[at] ^= 1 << bit;
                check_told(&files, last, &format!("{name} {at} {bit}"));
            }
        }
    }
}

#[test]
fn a_file_that_is_cut_off_is_told_or_does_no_harm() {
    for (sound, last) in [smallest(), small()] {
        for (name, bytes) in &sound {
            for len in offsets(bytes.len()) {
                let mut files = sound.clone();
                files.get_mut(name).unwrap().truncate(len);
                check_told(&files, last, &format!("{name} cut to {len}"));
            }
        }
    }
}

#[test]
fn sectors_of_zeros_are_told_or_do_no_harm() {
    let (sound, last) = small();
    for (name, bytes) in &sound {
        let count = bytes.len().div_ceil(512);
        for sector in (0..count).filter(|sector| *sector < 2 || sector + 2 > count || sector % 32 == 0) {
            for sectors in [1, 2, 300] {
                let mut files = sound.clone();
                let bytes = files.get_mut(name).unwrap();
                let end = bytes.len().min((sector + sectors) * 512);
                bytes[sector * 512..end].fill(0);
                check_told(&files, last, &format!("{name}: {sectors} from {sector} on"));
            }
        }
    }
}

/// A check of a log that was intact when it was opened finds every changed byte of its segments.
#[test]
fn a_check_finds_every_damaged_byte() {
    let (sound, _) = small();
    let memory = directory(&sound);
    let opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 8, &mut |_, _| {}).unwrap();
    let faults = |number| {
        let mut faults = Vec::new();
        let mut visit = |number, got: &[u8]| assert!(got == content(number, lens_of_small(number)));
        opened
            .log
            .check_segment(number, &mut visit, &mut |record, what| faults.push((record, what)), &mut |_| true)
            .unwrap();
        faults
    };
    for number in 1..=3 {
        assert_eq!(faults(number), []);
        let bytes = &sound[&segment(number)];
        let file = memory.open(&segment(number)).unwrap();
        let offsets = (0..bytes.len()).filter(|at| *at < 240 || at + 100 > bytes.len());
        let unnoticed: Vec<_> =
            offsets.filter(|at| faults_of_flip(&*file, bytes, *at, || faults(number)).is_empty()).collect();
        // The padding after the records of each of at most two frames.
        assert!(unnoticed.len() <= 14 && unnoticed.iter().all(|at| bytes[*at] == 0), "{number} {unnoticed:?}");
        assert_eq!(faults(number), []);
    }
    assert!(opened.log.check_segment(4, &mut |_, _| {}, &mut |_, _| {}, &mut |_| true).is_err());
}

fn faults_of_flip<T>(file: &dyn eventstore_log::File, bytes: &[u8], at: usize, faults: impl Fn() -> T) -> T {
    file.write_at(&[bytes[at] ^ 4], at as u64).unwrap();
    let found = faults();
    file.write_at(&bytes[at..=at], at as u64).unwrap();
    found
}

#[test]
fn a_check_ends_when_it_is_told_to() {
    let memory = MemoryDirectory::default();
    let options = Options { segment_size: 4 << 20, ..Options::default() };
    let mut opened = Log::open(Arc::new(memory), ID, &options, Known::default(), 0, &mut |_, _| {}).unwrap();
    (0..60).for_each(|_| append(&mut opened, &[100_000]));
    let newest = opened.log.segments().pop().unwrap();
    let mut asked = Vec::new();
    let mut count = 0;
    let mut go_on = |bytes| {
        asked.push(bytes);
        false
    };
    opened.log.check_segment(newest.number, &mut |_, _| count += 1, &mut |_, _| panic!("sound"), &mut go_on).unwrap();
    assert_eq!(asked.len(), 1);
    assert!(count > 5 && count < newest.records.end - newest.records.start);
}

#[test]
fn the_checkpoint_and_footers_are_not_needed() {
    let (sound, last) = small();
    let mut files = sound.clone();
    files.remove("tail");
    files.get_mut(&segment(1)).unwrap().truncate(64 + 176);
    let (opened, visited) = try_open(&files, last);
    let opened = opened.unwrap();
    assert_eq!((opened.damage, visited.len() as u64, opened.tail), (None, last, None));
    assert!(opened.log.segments().iter().all(|segment| segment.number == 2 || !segment.is_sealed));
}

#[test]
fn a_newer_format_is_unsupported() {
    let (sound, last) = small();
    // Without the codec, a compressed segment cannot be read at all.
    let compressed = (58, if cfg!(feature = "zstd") { 2 } else { 1 });
    for (at, value) in [(7, 2), (59, 0x80), compressed] {
        let mut files = sound.clone();
        let bytes = files.get_mut(&segment(1)).unwrap();
        bytes[at] = value;
        let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&crc);
        let opened = try_open(&files, last).0;
        assert!(matches!(opened, Err(Error::Unsupported { .. })), "{opened:?}");
    }
}

#[test]
fn an_end_that_a_checkpoint_knows_is_missed() {
    let memory = MemoryDirectory::default();
    let mut opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {}).unwrap();
    (0..3).for_each(|_| append(&mut opened, &[100]));
    opened.log.checkpoint(opened.log.position(), b"", &mut |_| Vec::new()).unwrap();
    drop(opened);
    let mut files = files(&memory);
    let frame = 40 + 8 + 100 + 4;
    for frames in [2, 1, 0] {
        files.get_mut(&segment(1)).unwrap().truncate(64 + frames * frame);
        let opened = try_open(&files, 0).0.unwrap();
        assert_eq!(opened.damage.map(|damage| damage.record), Some(frames as u64 + 1));
    }
    files.remove(&segment(1));
    let opened = try_open(&files, 0).0.unwrap();
    assert_eq!(opened.damage.map(|damage| damage.record), Some(1));
}

/// Two copies of a log diverged: no record of one can follow one of the other.
#[test]
fn a_frame_is_bound_to_the_one_before_it() {
    let memory = MemoryDirectory::default();
    let mut opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {}).unwrap();
    append(&mut opened, &[100]);
    drop(opened);
    let ways = ["one", "other"].map(|way| {
        let memory = directory(&files(&memory));
        let opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {});
        let mut appender = opened.unwrap().appender.unwrap();
        for number in 2..4 {
            let mut group = Group::default();
            group.begin(number);
            group.push(&[&way.as_bytes()[..3], &[0; 97]]);
            appender.commit(&mut group, false).unwrap();
        }
        drop(appender);
        files(&memory)
    });
    let third = 64 + 2 * (40 + 8 + 100 + 4);
    let mut mixed = ways[0].clone();
    mixed.get_mut(&segment(1)).unwrap()[third..].copy_from_slice(&ways[1][&segment(1)][third..]);
    for (files, last) in [(&ways[0], 3), (&ways[1], 3), (&mixed, 2)] {
        let opened = try_open(files, 0).0.unwrap();
        assert_eq!((opened.log.last(), opened.damage), (last, None));
    }
}

/// The last two groups were synced, according to the header of the second one or another source.
#[test]
fn an_end_that_was_synced_is_damage_and_one_that_was_not_is_cut_off() {
    let memory = MemoryDirectory::default();
    let mut opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {}).unwrap();
    (0..3).for_each(|_| append(&mut opened, &[100]));
    drop(opened);
    let frame = 40 + 8 + 100 + 4;
    let mut files = files(&memory);
    files.get_mut(&segment(1)).unwrap()[64 + frame + 60] ^= 1;
    let opened = try_open(&files, 0).0.unwrap();
    assert_eq!(opened.damage.map(|damage| damage.record), Some(2), "the third says that it was synced");
    files.get_mut(&segment(1)).unwrap()[64 + 2 * frame + 10] ^= 1;
    let opened = try_open(&files, 2).0.unwrap();
    assert_eq!(opened.damage.map(|damage| damage.record), Some(2), "it is known that it was synced");
    let opened = try_open(&files, 1).0.unwrap();
    assert_eq!((opened.damage, opened.log.last()), (None, 1), "nothing says so");
    assert_eq!((opened.recovery.aside.as_deref(), opened.recovery.torn_bytes), (Some("aside-1"), 2 * frame as u64 - 4));
}

/// Appends this many groups of one record, whose contents have this length and begin with the log's name. Writes a
/// checkpoint whose blob is the name.
fn go_on(files: &Files, name: &str, groups: u64, len: usize) -> Files {
    let memory = directory(files);
    let opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), u64::MAX, &mut |_, _| {});
    let mut opened = opened.unwrap();
    for _ in 0..groups {
        let mut group = Group::default();
        group.begin(opened.log.last() + 1);
        group.push(&[name.as_bytes(), &content(group.next(), len)[name.len()..]]);
        opened.appender.as_mut().unwrap().commit(&mut group, true).unwrap();
    }
    opened.log.checkpoint(opened.log.position(), name.as_bytes(), &mut |_| Vec::new()).unwrap();
    drop(opened);
    self::files(&memory)
}

/// Diverged copies of a log have the same salt in the segment where they diverged.
#[test]
fn the_checkpoint_of_a_copy_that_went_its_own_way_is_none() {
    let common = go_on(&Files::new(), "both", 4, 100);
    let ours = go_on(&common, "ours", 6, 100);
    let opened = try_open(&ours, 0).0.unwrap();
    assert_eq!((opened.tail.unwrap().blob, opened.recovery.scanned_records), (b"ours".to_vec(), 0));
    // Groups of the same size, shorter and longer ones. They end before, at and after the end of ours, within or
    // between our groups.
    for (groups, len) in [(1, 100), (6, 100), (1, 60), (9, 60), (1, 200), (2, 200), (4, 100), (7, 90), (8, 50)] {
        let theirs = go_on(&common, "they", groups, len);
        let mut mixed = ours.clone();
        mixed.insert("tail".to_owned(), theirs["tail"].clone());
        for known in [0, 10] {
            let (opened, visited) = try_open(&mixed, known);
            let opened = opened.unwrap();
            let what = format!("{groups} of {len}: {:?}", opened.damage);
            assert!(opened.appender.is_some() && opened.tail.is_none(), "{what}");
            assert_eq!((opened.log.last(), visited.len()), (10, 10), "{what}");
            assert!(visited.iter().all(|(number, content)| content.starts_with(if *number < 5 {
                b"both"
            } else {
                b"ours"
            })));
            assert_eq!(opened.recovery.torn_bytes, 0, "{what}");
        }
    }
    // It cannot be told from a checkpoint of ours whose frames are lost.
    let theirs = go_on(&common, "they", 9, 100);
    let mut mixed = ours.clone();
    mixed.insert("tail".to_owned(), theirs["tail"].clone());
    let opened = try_open(&mixed, 0).0.unwrap();
    assert_eq!((opened.log.last(), opened.damage.map(|damage| damage.record)), (10, Some(11)));
    // A checkpoint from before the divergence belongs to both.
    mixed.insert("tail".to_owned(), common["tail"].clone());
    let opened = try_open(&mixed, 0).0.unwrap();
    assert_eq!((opened.tail.unwrap().record, opened.recovery.scanned_records), (4, 6));
}

/// Nothing else says that the last group was synced.
#[test]
fn damage_to_the_frame_before_the_checkpoint_is_told() {
    let sound = go_on(&Files::new(), "ours", 6, 100);
    let frame = 64 + 5 * (40 + 8 + 100 + 4);
    for at in frame..frame + 40 {
        let mut files = sound.clone();
        files.get_mut(&segment(1)).unwrap()[at] ^= 1;
        let opened = try_open(&files, 0).0.unwrap();
        assert_eq!(opened.damage.map(|damage| damage.record), Some(6), "{at}");
        assert!(opened.tail.is_none() && opened.recovery.aside.is_none());
    }
}

/// A checkpoint with these fields, without anchors.
fn tail(segment: u64, header: &[u8], offset: u64, next: &[u8], chain: &[u8]) -> Vec<u8> {
    let mut bytes = [b"EVSTAIL\x01", ID.as_slice(), &segment.to_le_bytes(), &header[40..48]].concat();
    [&offset.to_le_bytes(), &[0; 8], next, &[0; 8], &[0; 4], chain, &[0; 4], &4_u32.to_le_bytes(), b"blob"]
        .iter()
        .for_each(|field| bytes.extend_from_slice(field));
    let crc = crc32fast::hash(&bytes).to_le_bytes();
    bytes.extend_from_slice(&crc);
    bytes
}

#[test]
fn a_checkpoint_at_the_beginning_of_a_segment_is_bound_to_its_header() {
    let (sound, last) = large(false);
    let header = &sound[&segment(4)][..64];
    let mut other_chain = header[52..56].to_vec();
    other_chain[1] ^= 1;
    let other_next = 56_u64.to_le_bytes();
    let ours = tail(4, header, 64, &header[32..40], &header[52..56]);
    let others = [
        tail(4, header, 64, &header[32..40], &other_chain),
        tail(4, header, 64, &other_next, &header[52..56]),
        tail(4, &sound[&segment(3)], 64, &header[32..40], &header[52..56]),
        tail(3, header, 64, &header[32..40], &header[52..56]),
        tail(4, header, 72, &header[32..40], &header[52..56]),
    ];
    for (tail, is_ours) in others.into_iter().map(|tail| (tail, false)).chain([(ours, true)]) {
        let mut files = sound.clone();
        files.insert("tail".to_owned(), tail);
        let (opened, visited) = try_open(&files, last);
        let opened = opened.unwrap();
        assert_eq!((opened.tail.is_some(), opened.damage), (is_ours, None));
        assert_eq!(visited.len() as u64, last);
    }
}

#[test]
fn a_footer_that_got_through_in_part_is_made_again() {
    let (sound, last) = large(true);
    let name = segment(3);
    let footer = sound[&name].len() - 96 - "blob".len();
    // The anchors, or the blob, in front of the sector with the end.
    for torn in [footer - 64..footer, footer..footer + 4] {
        let mut files = sound.clone();
        files.get_mut(&name).unwrap()[torn].fill(0);
        files.remove("tail");
        let opened = try_open(&files, last).0.unwrap();
        assert_eq!((opened.log.last(), opened.damage.is_none()), (last, true));
        let mut found = Vec::new();
        opened.log.checkpoint(opened.log.position(), b"tail", &mut |_| b"blob".to_vec()).unwrap();
        for number in 1..=4 {
            let note = &mut |record, reason| found.push((record, reason));
            opened.log.check_segment(number, &mut |_, _| {}, note, &mut |_| true).unwrap();
        }
        assert_eq!(found, []);
        assert_eq!(opened.log.segment_blob(last / 2 + 1).unwrap().unwrap(), b"blob");
    }
}

#[test]
fn a_checkpoint_at_the_end_of_a_sealed_segment_is_bound_to_its_footer() {
    let (mut sound, _) = large(true);
    sound.remove(&segment(4));
    sound.remove("tail");
    let memory = directory(&sound);
    let opened = Log::open(Arc::new(memory.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {}).unwrap();
    assert!(opened.log.segments()[2].is_sealed);
    opened.log.checkpoint(opened.log.position(), b"sealed", &mut |_| Vec::new()).unwrap();
    drop(opened);
    let sealed = files(&memory);
    let opened = try_open(&sealed, 54).0.unwrap();
    assert_eq!((opened.tail.unwrap().blob, opened.damage), (b"sealed".to_vec(), None));
    // The same, for a diverged copy.
    let mut files = sealed;
    let tail = files.get_mut("tail").unwrap();
    tail[76] ^= 1;
    let end = tail.len() - 4;
    let crc = crc32fast::hash(&tail[..end]).to_le_bytes();
    tail[end..].copy_from_slice(&crc);
    let opened = try_open(&files, 54).0.unwrap();
    assert_eq!((opened.tail, opened.damage, opened.log.last()), (None, None, 54));
}

/// Also where nothing is valid any more.
#[test]
fn a_check_is_asked_while_it_looks_for_the_end_of_damage() {
    let memory = MemoryDirectory::default();
    let options = Options { segment_size: 16 << 20, ..Options::default() };
    let mut opened = Log::open(Arc::new(memory.clone()), ID, &options, Known::default(), 0, &mut |_, _| {}).unwrap();
    (0..140).for_each(|_| append(&mut opened, &[100_000]));
    let newest = opened.log.segments().pop().unwrap();
    let damaged = 5 << 20;
    memory.open(&segment(newest.number)).unwrap().write_at(&vec![0xff; damaged], 64).unwrap();
    for most in [1, 2, 3, 100] {
        let (mut asked, mut found, mut visited) = (Vec::new(), 0, 0);
        let mut go_on = |bytes| {
            asked.push(bytes);
            asked.len() < most
        };
        let log = &opened.log;
        log.check_segment(newest.number, &mut |_, _| visited += 1, &mut |_, _| found += 1, &mut go_on).unwrap();
        assert!(asked.is_sorted_by(|one, next| next - one <= 1 << 20), "{asked:?}");
        if most == 100 {
            assert!(found > 0 && visited > 0 && asked.len() > 5, "{found} {visited} {asked:?}");
        } else {
            assert_eq!((asked.len(), found, visited), (most, 0, 0));
        }
    }
}

#[test]
fn anchors_and_blobs_of_footers_are_mended() {
    let (sound, last) = large(true);
    let name = segment(2);
    let opened = try_open(&sound, last).0.unwrap();
    let info = &opened.log.segments()[1];
    let (first, end) = (info.records.start, sound[&name].len());
    let faults = |log: &Log| {
        let mut faults = 0;
        log.check_segment(2, &mut |_, _| {}, &mut |_, _| faults += 1, &mut |_| true).unwrap();
        faults
    };
    // The blob and the anchors precede the last 96 bytes.
    for at in end - 96 - "blob".len() - 80..end - 96 {
        let mut damaged = sound.clone();
        damaged.get_mut(&name).unwrap()[at] ^= 0x10;
        let target = directory(&damaged);
        let open =
            || Log::open(Arc::new(target.clone()), ID, &options(), Known { synced: last }, 0, &mut |_, _| {}).unwrap();
        let opened = open();
        assert_eq!(faults(&opened.log), 1, "byte {at} of {end}");
        let mended = opened.log.mend_footers(&mut |_| b"blob".to_vec(), &mut || true).unwrap();
        assert!(mended == [name.as_str()], "byte {at} of {end}");
        assert_eq!(faults(&opened.log), 0, "byte {at} of {end}");
        drop(opened);
        assert!(files(&target) == sound, "byte {at} of {end}: it is as it was");
        assert_eq!(open().log.segment_blob(first).unwrap(), Some(b"blob".to_vec()));
    }
}
