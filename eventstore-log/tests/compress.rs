//! Compressed segments are read like any other, and no interruption loses anything.
#![cfg(feature = "zstd")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Every, Fault, Files, SimDisk, by_chance, directory, files};
use eventstore_log::{
    Compression, Directory, DiskDirectory, Error, Group, Known, Log, MemoryDirectory, Opened, Options,
    OverlayDirectory, Page, Shrunk,
};

const ID: [u8; 16] = [5; 16];

fn options() -> Options {
    Options { segment_size: 128 << 10, space_ahead: 0, compression: Compression::Zstd, ..Options::default() }
}

fn open(files: Arc<dyn Directory>) -> Opened {
    Log::open(files, ID, &options(), Known::default(), 0, &mut |_, _| {}).expect("opened")
}

/// Compressible words that differ from record to record.
fn content(number: u64) -> Vec<u8> {
    let len = match number % 23 {
        3 => 0,
        7 => 9000,
        11 => 40_000,
        13 => 150_000,
        rest => rest * 41,
    };
    (0..len).map(|index| b"one or the other "[((index / 3 * number) ^ index) as usize % 17]).collect()
}

/// Incompressible bytes.
fn noise(number: u64, len: usize) -> Vec<u8> {
    let mut state = number;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn append(opened: &mut Opened, contents: &[Vec<u8>], sync: bool) {
    let mut group = Group::default();
    group.begin(opened.log.last() + 1);
    contents.iter().for_each(|content| group.push(&[content]));
    opened.appender.as_mut().expect("sound").commit(&mut group, sync).expect("committed");
}

fn append_usual(opened: &mut Opened, count: u64) {
    for _ in 0..count {
        append(opened, &[content(opened.log.last() + 1)], false);
    }
}

fn seal(opened: &Opened) {
    opened
        .log
        .checkpoint(opened.log.position(), b"tail", &mut |range| format!("{range:?}").into_bytes())
        .expect("made");
}

fn compress(opened: &Opened) -> Shrunk {
    opened.log.compress(&mut || true).expect("compressed")
}

fn records(log: &Log) -> Vec<Vec<u8>> {
    let mut page = Page::default();
    while (page.records.len() as u64) < log.last() {
        log.read(page.records.len() as u64 + 1..u64::MAX, 1 << 20, usize::MAX, &mut page).expect("read");
    }
    page.contents().map(|(_, content)| content.to_vec()).collect()
}

/// Each segment has a single generation.
fn check_names(names: impl Iterator<Item = String>) {
    let numbers: Vec<_> = names.filter(|name| name.contains('-') && !name.contains('/')).collect();
    let mut once: Vec<_> = numbers.iter().map(|name| name.split('-').next().unwrap()).collect();
    once.dedup();
    assert!(numbers.len() == once.len() && numbers.iter().all(|name| name.ends_with(".seg")), "{numbers:?}");
}

/// Reads every record in every way.
fn check(log: &Log, from: u64) {
    let last = log.last();
    let mut page = Page::default();
    let right = |(number, got): (u64, &[u8])| assert!(got == content(number), "{number}");
    for start in from..=last {
        for (bytes, count) in [(0, 1), (3000, 100), (200_000, 7)] {
            page.clear();
            log.read(start..last + 1, bytes, count, &mut page).expect("read");
            assert!(page.records[0].0 == start && page.records.is_sorted_by(|a, b| a.0 + 1 == b.0));
            page.contents().for_each(right);
            page.clear();
            log.read_backward(from..start + 1, bytes, count, &mut page).expect("read");
            assert!(page.records[0].0 == start && page.records.is_sorted_by(|a, b| a.0 == b.0 + 1));
            page.contents().for_each(right);
        }
        page.clear();
        log.read_one(start, &mut page).expect("read");
        assert!(page.contents().eq([(start, content(start).as_slice())]));
        assert_eq!(page.bytes.len(), content(start).len());
    }
}

fn check_segments(log: &Log) {
    let mut next = 1;
    for segment in log.segments() {
        let mut visit = |number, got: &[u8]| {
            assert!(number == next && got == content(number));
            next += 1;
        };
        let mut fault = |record, reason| panic!("{record} {reason}");
        log.check_segment(segment.number, &mut visit, &mut fault, &mut |_| true).expect("checked");
        let blob = segment.is_sealed.then(|| format!("{:?}", segment.records).into_bytes());
        assert_eq!(log.segment_blob(segment.records.start).expect("read"), blob);
    }
    assert_eq!(next, log.last() + 1);
}

fn check_all(directory: Arc<dyn Directory>) {
    let mut opened = open(Arc::clone(&directory));
    append_usual(&mut opened, 70);
    seal(&opened);
    let (before, segments) = (opened.log.len_bytes(), opened.log.segments());
    let shrunk = compress(&opened);
    assert!(shrunk.segments >= 5 && shrunk.bytes_after * 2 < shrunk.bytes_before, "{shrunk:?}");
    assert_eq!(opened.log.len_bytes(), before - shrunk.bytes_before + shrunk.bytes_after);
    assert_eq!(compress(&opened), Shrunk::default(), "nothing is left to do");
    check_names(directory.list().unwrap().into_iter());
    for _ in 0..2 {
        check(&opened.log, 1);
        check_segments(&opened.log);
        // The log keeps growing.
        append_usual(&mut opened, 20);
        check(&opened.log, 60);
        drop(opened);
        opened = open(Arc::clone(&directory));
        assert_eq!(opened.damage, None);
    }
    let generations = |segments: &[eventstore_log::Segment]| {
        segments.iter().map(|segment| (segment.number, segment.records.clone(), segment.is_sealed)).collect::<Vec<_>>()
    };
    let now = opened.log.segments();
    assert_eq!(generations(&now[..shrunk.segments as usize]), generations(&segments[..shrunk.segments as usize]));
    assert!(now[..shrunk.segments as usize].iter().all(|segment| segment.generation == 1));
    let mut visited = 0;
    let log = Log::open(directory, ID, &Options::default(), Known::default(), 0, &mut |number, got| {
        visited += 1;
        assert!(number == visited && got == content(number));
    });
    assert_eq!(log.expect("opened, whatever the option is").log.last(), visited);
}

#[test]
fn compressed_segments_are_read_in_memory() {
    check_all(Arc::new(MemoryDirectory::default()));
}

#[test]
fn compressed_segments_are_read_on_disk() {
    let temporary = tempfile::tempdir().unwrap();
    check_all(Arc::new(DiskDirectory::new(temporary.path())));
}

#[test]
fn without_the_option_nothing_is_compressed() {
    let directory = MemoryDirectory::default();
    let options = Options { compression: Compression::None, ..options() };
    let mut opened = Log::open(Arc::new(directory), ID, &options, Known::default(), 0, &mut |_, _| {}).unwrap();
    append_usual(&mut opened, 30);
    seal(&opened);
    assert_eq!(compress(&opened), Shrunk::default());
}

#[test]
fn what_does_not_shrink_is_left_and_not_tried_again() {
    let disk = SimDisk::default();
    let mut opened = open(Arc::new(disk.clone()));
    for number in 1..=30 {
        append(&mut opened, &[noise(number, 20_000)], false);
    }
    seal(&opened);
    let (names, calls) = (disk.list().unwrap(), disk.calls());
    assert_eq!(compress(&opened), Shrunk::default());
    assert_eq!(disk.list().unwrap(), names);
    assert!(disk.calls() > calls, "it was tried");
    let calls = disk.calls();
    assert_eq!(compress(&opened), Shrunk::default());
    assert_eq!(disk.calls(), calls);
}

#[test]
fn whoever_reads_goes_on_while_segments_are_replaced() {
    let temporary = tempfile::tempdir().unwrap();
    let mut opened = open(Arc::new(DiskDirectory::new(temporary.path())));
    append_usual(&mut opened, 3);
    let (log, is_done) = (opened.log.clone(), AtomicBool::new(false));
    thread::scope(|scope| {
        for reader in 0..2 {
            let (log, is_done) = (log.clone(), &is_done);
            scope.spawn(move || {
                let (mut page, mut number) = (Page::default(), reader);
                while !is_done.load(Ordering::Relaxed) {
                    number = number % log.last() + 1;
                    page.clear();
                    log.read(number..u64::MAX, 30_000, 20, &mut page).expect("read");
                    log.read_backward(1..number + 1, 30_000, 20, &mut page).expect("read");
                    log.read_one(number, &mut page).expect("read");
                    page.contents().for_each(|(number, got)| assert!(got == content(number)));
                }
            });
        }
        let mut shrunk = 0;
        for _ in 0..15 {
            append_usual(&mut opened, 10);
            seal(&opened);
            shrunk += compress(&opened).segments;
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(shrunk > 5, "{shrunk}");
    });
    check(&log, log.last() - 30);
}

#[test]
fn it_ends_when_it_is_asked_to() {
    let disk = SimDisk::default();
    let mut opened = open(Arc::new(disk.clone()));
    append_usual(&mut opened, 40);
    seal(&opened);
    let mut before = 0;
    for most in 0.. {
        let mut asked = 0;
        let shrunk = opened.log.compress(&mut || {
            asked += 1;
            asked <= most
        });
        let shrunk = shrunk.expect("no error").segments;
        check_names(disk.list().unwrap().into_iter());
        check_segments(&opened.log);
        if asked <= most {
            break;
        }
        before += shrunk;
    }
    assert!(before > 0 && opened.log.segments()[0].generation == 1);
}

/// Every call fails once, or is the last one before every unsynced name may be lost: the log is intact.
#[test]
fn whatever_interrupts_it_loses_nothing() {
    let first = SimDisk::default();
    let mut opened = open(Arc::new(first.clone()));
    append_usual(&mut opened, 16);
    append(&mut opened, &[content(17)], true);
    seal(&opened);
    drop(opened);
    let first = first.after_power_cut(&mut by_chance(0));
    let all = records(&open(Arc::new(first.after_kill())).log);
    assert_eq!(all.len(), 17);
    let (mut images, mut with_both) = (0, 0);
    for call in 1.. {
        let mut is_over = false;
        for (fault, seed) in [(Fault::Error, 0), (Fault::Full, 0), (Fault::Full, 1), (Fault::Down, 1), (Fault::Down, 2)]
        {
            let disk = first.after_kill();
            let opened = open(Arc::new(disk.clone()));
            disk.fail_after(call, fault, seed);
            let compressed = opened.log.compress(&mut || true);
            let calls = disk.calls();
            if fault != Fault::Down {
                assert_eq!(records(&opened.log), all, "who has it open");
            }
            // The last steps only warn; the next opening does them.
            is_over |= compressed.is_ok() && {
                disk.no_faults();
                disk.calls() == calls && calls < call
            };
            let mut every = Every::default();
            let mut count = 0;
            let mut cuts = vec![disk.after_kill()];
            while every.begin() && count < 300 {
                cuts.push(disk.after_power_cut(&mut |options| every.choose(2) * (options - 1)));
                every.end();
                count += 1;
            }
            cuts.extend((0..20).map(|seed| disk.after_power_cut(&mut by_chance(seed * 1000 + call))));
            for cut in cuts {
                let names = cut.list().unwrap();
                with_both += u64::from(
                    names.iter().any(|name| name == "0000000001-0.seg")
                        && names.iter().any(|name| name == "0000000001-1.seg"),
                );
                let opened = open(Arc::new(cut.clone()));
                assert_eq!(opened.damage, None);
                assert!(records(&opened.log) == all, "{call} {fault:?} {names:?}");
                check_names(cut.list().unwrap().into_iter());
                images += 1;
                if images % 7 == 0 {
                    // What opening has removed does not come back, and nothing else is lost.
                    let again = cut.after_power_cut(&mut by_chance(images));
                    let opened = open(Arc::new(again.clone()));
                    assert!(records(&opened.log) == all);
                    compress(&opened);
                    check_names(again.list().unwrap().into_iter());
                    assert!(opened.log.segments()[0].generation == 1 && records(&opened.log) == all);
                }
            }
        }
        if is_over || call > 60 {
            break;
        }
    }
    assert!(images > 1000 && with_both > 50, "{images} {with_both}");
}

/// Opening itself is interrupted while both generations exist.
#[test]
fn an_opening_that_is_interrupted_keeps_one_of_both() {
    let disk = SimDisk::default();
    let mut opened = open(Arc::new(disk.clone()));
    append_usual(&mut opened, 16);
    append(&mut opened, &[content(17)], true);
    seal(&opened);
    let old = disk.files();
    let all = records(&opened.log);
    compress(&opened);
    let mut both: Files = disk.files();
    both.extend(old);
    drop(opened);
    for damage in [None, Some(70), Some(usize::MAX)] {
        let mut files = both.clone();
        let newer = files.get_mut("0000000001-1.seg").unwrap();
        match damage {
            None => {}
            Some(usize::MAX) => newer.truncate(newer.len() - 1),
            Some(at) => {
                let at = newer.len() - at;
                newer[at] ^= 1;
            }
        }
        for call in 1..12 {
            for seed in 0..8 {
                let disk = SimDisk::default();
                for (name, bytes) in &files {
                    let file = disk.create(name).unwrap();
                    file.write_at(bytes, 0).unwrap();
                    file.sync_all().unwrap();
                }
                // The rename is only in the cache, in half of the cases.
                if seed % 2 == 0 {
                    disk.sync().unwrap();
                } else {
                    disk.rename("0000000001-1.seg", "x").unwrap();
                    disk.sync().unwrap();
                    disk.rename("x", "0000000001-1.seg").unwrap();
                }
                disk.fail_after(call, if seed % 3 == 0 { Fault::Error } else { Fault::Down }, 0);
                let _ = Log::open(Arc::new(disk.clone()), ID, &options(), Known::default(), 0, &mut |_, _| {});
                let disk = disk.after_power_cut(&mut by_chance(seed));
                let opened = open(Arc::new(disk.clone()));
                assert!(opened.damage.is_none() && records(&opened.log) == all, "{damage:?} {call} {seed}");
                let is_newer_used = opened.log.segments()[0].generation == 1;
                assert!(damage.is_none() || !is_newer_used);
                check_names(disk.list().unwrap().into_iter());
            }
        }
    }
}

/// A read-only opening leaves both generations to the next one, and copies nothing into memory.
#[test]
fn a_view_that_keeps_no_changes_tidies_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(DiskDirectory::new(directory.path()));
    let mut opened = open(disk.clone());
    append_usual(&mut opened, 16);
    seal(&opened);
    let all = records(&opened.log);
    let old = std::fs::read(directory.path().join("0000000001-0.seg")).unwrap();
    compress(&opened);
    drop(opened);
    std::fs::write(directory.path().join("0000000001-0.seg"), old).unwrap();
    let names = |files: &dyn Directory| {
        let mut names = files.list().unwrap();
        names.sort();
        names
    };
    let before = names(&*disk);
    let view = Arc::new(OverlayDirectory::new(directory.path()));
    assert_eq!(records(&open(view.clone()).log), all);
    assert_eq!(names(&*view), before);
    assert_eq!(records(&open(disk.clone()).log), all);
    assert!(!names(&*disk).contains(&"0000000001-0.seg".to_owned()), "an opening for appending tidies");
}

/// A small compressed segment, followed by an uncompressed one.
fn small() -> (Files, Vec<Vec<u8>>) {
    let directory = MemoryDirectory::default();
    let mut opened = open(Arc::new(directory.clone()));
    append(&mut opened, &[vec![1; 50], noise(2, 20), vec![3; 700]], false);
    append(&mut opened, &[vec![4; 80]], false);
    append(&mut opened, &[noise(5, 65_500)], false);
    seal(&opened);
    append(&mut opened, &[vec![7; 5]], true);
    assert_eq!(compress(&opened).segments, 1);
    let all = records(&opened.log);
    drop(opened);
    (files(&directory), all)
}

/// Whatever is read is right, and everything is read unless damage is reported.
fn check_damaged(files: &Files, all: &[Vec<u8>], what: &str) {
    let right = |number: u64, got: &[u8]| assert!(got == all[number as usize - 1], "{what}: {number}");
    for known in [all.len() as u64, 0] {
        let directory = Arc::new(directory(files));
        let mut visited = 0;
        let opened = Log::open(directory, ID, &options(), Known { synced: known }, 0, &mut |number, got| {
            right(number, got);
            visited += 1;
        });
        let opened = match opened {
            Ok(opened) => opened,
            Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => continue,
            Err(error) => panic!("{what}: {error:?}"),
        };
        let log = &opened.log;
        assert!(log.last() == all.len() as u64 || (opened.damage.is_some() && log.last() < all.len() as u64), "{what}");
        assert!(opened.damage.is_some() || visited == all.len(), "{what}");
        let mut lost = 0;
        for number in 1..=log.last() {
            let mut pages = [(); 3].map(|()| Page::default());
            let [forward, backward, one] = &mut pages;
            let read = [
                log.read(number..number + 1, 0, 1, forward),
                log.read_backward(number..number + 1, 0, 1, backward),
                log.read_one(number, one),
            ];
            for (read, page) in read.iter().zip(&pages) {
                assert!(matches!(read, Ok(()) | Err(Error::Corrupt { .. })), "{what}: {read:?}");
                assert_eq!(read.is_ok(), page.records.len() == 1, "{what}");
                page.contents().for_each(|(number, got)| right(number, got));
            }
            lost += u64::from(read[0].is_err());
        }
        assert!(opened.damage.is_some() || lost == 0, "{what}");
        let mut faults = 0;
        for segment in log.segments() {
            log.check_segment(
                segment.number,
                &mut |number, got| right(number, got),
                &mut |_, _| faults += 1,
                &mut |_| true,
            )
            .expect("checked");
        }
        let is_told = faults > 0 || opened.damage.is_some() || *what == *"sound" || what.starts_with("tail");
        assert!(is_told, "{what}: nobody was told");
    }
}

#[test]
fn every_flipped_bit_of_a_compressed_segment_is_told() {
    let (sound, all) = small();
    check_damaged(&sound, &all, "sound");
    for (name, bytes) in sound.iter().filter(|(name, _)| name.ends_with("-1.seg")) {
        assert!(bytes.len() < 2000, "{}", bytes.len());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut files = sound.clone();
                files.get_mut(name).unwrap()[at] ^= 1 << bit;
                check_damaged(&files, &all, &format!("{name} {at} {bit}"));
            }
        }
    }
}

#[test]
fn a_compressed_segment_that_is_cut_off_is_told() {
    let (sound, all) = small();
    for (name, bytes) in sound.iter().filter(|(name, _)| name.ends_with("-1.seg")) {
        for len in 0..bytes.len() {
            let mut files = sound.clone();
            files.get_mut(name).unwrap().truncate(len);
            check_damaged(&files, &all, &format!("{name} cut to {len}"));
            files.get_mut(name).unwrap().resize(bytes.len(), 0);
            check_damaged(&files, &all, &format!("{name} zeros from {len} on"));
        }
        for len in [1, 8, 512, 70_000] {
            let mut files = sound.clone();
            files.get_mut(name).unwrap().resize(bytes.len() + len, 7);
            check_damaged(&files, &all, &format!("{name} with {len} more"));
        }
    }
}

/// It is the last segment, since the next one is gone. It is not mistaken for a torn end.
#[test]
fn damage_to_a_compressed_segment_at_the_end_is_no_torn_end() {
    let (mut sound, all) = small();
    let names: Vec<_> = sound.keys().cloned().collect();
    let compressed: Vec<_> = names.iter().filter(|name| name.ends_with("-1.seg")).collect();
    names.iter().filter(|name| !compressed[..1].contains(name)).for_each(|name| drop(sound.remove(name)));
    let name = compressed[0];
    let first = open(Arc::new(directory(&sound)));
    assert_eq!((first.log.last(), first.damage.is_none()), (4, true));
    let mut opened = first;
    append(&mut opened, &[b"and so on".to_vec()], true);
    let read = records(&opened.log);
    assert!(read[..4] == all[..4] && read[4] == b"and so on");
    drop(opened);
    let len = sound[name].len();
    for at in 0..len {
        for is_cut in [false, true] {
            let mut files = sound.clone();
            let bytes = files.get_mut(name).unwrap();
            if is_cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 0x20;
            }
            let before = files.clone();
            let disk = directory(&files);
            let opened = Log::open(Arc::new(disk.clone()), ID, &options(), Known::default(), 4, &mut |_, _| {});
            match opened {
                Ok(opened) if opened.damage.is_none() => {
                    assert_eq!(opened.log.last(), 4, "{at}");
                }
                _ => assert!(self::files(&disk) == before, "{at}: nothing is touched"),
            }
        }
    }
}

/// An incremental copy is right whatever the source or the target has compressed meanwhile.
#[test]
fn copies_are_right_whatever_was_compressed_meanwhile() {
    for program in (0..256_u32).step_by(5) {
        let (source, target) = (MemoryDirectory::default(), MemoryDirectory::default());
        let mut opened = open(Arc::new(source.clone()));
        append_usual(&mut opened, 12);
        for step in 0..4 {
            let does = |what: u32| program >> (2 * step) & what != 0;
            if does(1) {
                seal(&opened);
                compress(&opened);
            }
            append_usual(&mut opened, 9);
            if step == 2 {
                seal(&opened);
            }
            opened.log.copy_to(&target, &mut |_, _| true).expect("copied").expect("wanted");
            check_names(target.list().unwrap().into_iter());
            let copy = open(Arc::new(target.clone()));
            assert_eq!(copy.damage, None);
            assert!(records(&copy.log) == records(&opened.log), "{program} {step}");
            if does(2) {
                seal(&copy);
                compress(&copy);
            }
        }
        let again = opened.log.copy_to(&target, &mut |_, _| panic!("nothing to do")).expect("copied").expect("wanted");
        assert_eq!(again.bytes, 0);
    }
}

#[test]
fn whatever_interrupts_a_copy_of_compressed_segments_leaves_a_beginning() {
    let source = MemoryDirectory::default();
    let mut opened = open(Arc::new(source.clone()));
    append_usual(&mut opened, 14);
    let first = SimDisk::default();
    opened.log.copy_to(&first, &mut |_, _| true).expect("copied");
    append_usual(&mut opened, 20);
    opened.log.checkpoint(opened.log.position(), b"", &mut |_| b"another".to_vec()).expect("made");
    assert!(compress(&opened).segments > 0);
    let all = records(&opened.log);
    for call in 1.. {
        let mut is_over = false;
        for (fault, seed) in [(Fault::Error, 0), (Fault::Full, 0), (Fault::Down, 1), (Fault::Down, 2), (Fault::Down, 3)]
        {
            let target = first.after_kill();
            target.fail_after(call, fault, seed);
            let copied = opened.log.copy_to(&target, &mut |_, _| true);
            is_over |= matches!(copied, Ok(Some(_)));
            for target in [target.after_kill(), target.after_power_cut(&mut by_chance(call * 8 + seed))] {
                let there = records(&open(Arc::new(target.after_kill())).log);
                assert!(there.len() >= 14 && there == all[..there.len()], "{call} {fault:?}");
                opened.log.copy_to(&target, &mut |_, _| true).expect("copied").expect("wanted");
                check_names(target.list().unwrap().into_iter());
                // What was removed may be back if the sync behind that failed. It does no harm.
                let may_be_back = target.has_lost_names();
                let target = target.after_power_cut(&mut by_chance(call));
                if !may_be_back {
                    check_names(target.list().unwrap().into_iter());
                }
                assert!(records(&open(Arc::new(target)).log) == all);
            }
        }
        if is_over {
            break;
        }
    }
}

/// Damages blocks one by one: the content of the others is readable.
#[test]
fn damage_to_a_block_costs_what_is_in_it() {
    let memory = MemoryDirectory::default();
    let mut opened = open(Arc::new(memory.clone()));
    (1..=60).for_each(|number| append(&mut opened, &[noise(number, 2000).repeat(2)], false));
    seal(&opened);
    assert_eq!(compress(&opened).segments, 2);
    let (second, all) = (opened.log.segments()[1].records.clone(), records(&opened.log));
    drop(opened);
    let mut files = files(&memory);
    let bytes = files.get_mut("0000000002-1.seg").unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 4;
    let directory = Arc::new(directory(&files));
    let opened = Log::open(directory, ID, &options(), Known::default(), 60, &mut |_, _| {}).unwrap();
    let (mut found, mut visited) = (Vec::new(), 0);
    let mut visit = |number: u64, got: &[u8]| {
        visited += 1;
        assert!(got == all[number as usize - 1]);
    };
    opened.log.check_segment(2, &mut visit, &mut |record, _| found.push(record), &mut |_| true).unwrap();
    assert_eq!(found[0], second.start);
    // 64 KiB have 16 records, the last of which extends into the next block.
    assert!((second.end - second.start - 17..second.end - second.start - 14).contains(&visited), "{visited}");
    for number in second.clone() {
        let mut page = Page::default();
        let read = opened.log.read_one(number, &mut page);
        assert_eq!(read.is_ok(), number > second.start + 16, "{number} {read:?}");
        page.contents().for_each(|(number, got)| assert!(got == all[number as usize - 1]));
    }
}

/// Without a footer nothing is lost but time: the segment is scanned and copied, and the log remains usable.
#[test]
fn a_footer_of_a_compressed_segment_can_be_done_without() {
    let (sound, all) = small();
    for at in [1, 40, 60, 100, 110] {
        let mut files = sound.clone();
        let bytes = files.get_mut("0000000001-1.seg").unwrap();
        let at = bytes.len() - at;
        bytes[at] ^= 1;
        let (source, target) = (directory(&files), MemoryDirectory::default());
        let mut opened = open(Arc::new(source.clone()));
        assert!(opened.damage.is_none() && records(&opened.log) == all);
        for count in [6, 7] {
            append(&mut opened, &[vec![count as u8]], true);
            seal(&opened);
            compress(&opened);
            opened.log.copy_to(&target, &mut |_, _| true).expect("copied").expect("wanted");
            let copy = open(Arc::new(target.clone()));
            assert_eq!(records(&copy.log), records(&opened.log));
            assert_eq!(copy.log.last(), count + 1);
        }
        let mut faults = 0;
        opened.log.check_segment(1, &mut |_, _| {}, &mut |_, _| faults += 1, &mut |_| true).unwrap();
        assert_eq!(faults, 1);
        drop(opened);
        assert_eq!(open(Arc::new(source)).log.last(), 8);
    }
}

/// The faults that a check finds in a segment, and its blob.
fn faults(log: &Log, number: u64) -> (usize, Vec<u8>) {
    let mut faults = 0;
    log.check_segment(number, &mut |_, _| {}, &mut |_, _| faults += 1, &mut |_| true).expect("read");
    let first = log.segments()[number as usize - 1].records.start;
    (faults, log.segment_blob(first).ok().flatten().unwrap_or_default())
}

#[test]
fn footers_and_tables_of_compressed_segments_are_mended() {
    let (sound, all) = small();
    let name = "0000000001-1.seg";
    let before = faults(&open(Arc::new(directory(&sound))).log, 1).1;
    let len = sound[name].len();
    // The end of a footer has 96 bytes. The blob and the anchors precede it, and the block table precedes those.
    let end = len - 96;
    let field = |at: usize| u32::from_le_bytes(sound[name][end + at..][..4].try_into().unwrap()) as usize;
    let (anchors, blob, blocks) = (field(32), field(36), field(56));
    assert!(anchors > 0 && blob == before.len() && blocks > 0, "{anchors} {blob} {blocks}");
    let mut mended = 0;
    for at in end - blob - 8 * anchors - 4 * (blocks + 1)..len {
        let mut files = sound.clone();
        files.get_mut(name).unwrap()[at] ^= 0x10;
        let target = directory(&files);
        let opened = open(Arc::new(target.clone()));
        if faults(&opened.log, 1).0 == 0 {
            continue; // bits that nothing depends on
        }
        let again = |number: &str| opened.log.mend_footers(&mut |_| number.as_bytes().to_vec(), &mut || true).unwrap();
        assert_eq!(again("made again"), [name], "byte {at} of {len}");
        assert_eq!(again("and again"), [""; 0], "byte {at} of {len}");
        for log in [&opened.log, &open(Arc::new(target.clone())).log] {
            let (faults, blob) = faults(log, 1);
            assert!(faults == 0 && (blob == before || blob == b"made again"), "byte {at} of {len}: {faults}, {blob:?}");
            assert!(records(log) == all && log.segments()[0].is_sealed);
        }
        check_names(target.list().unwrap().into_iter());
        mended += 1;
    }
    assert!(mended > 100, "{mended}");
}

#[test]
fn what_is_lost_with_a_record_is_not_mended_and_what_is_ended_stays() {
    let (sound, all) = small();
    let name = "0000000001-1.seg";
    let mut files = sound.clone();
    let bytes = files.get_mut(name).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    let opened = open(Arc::new(directory(&files)));
    let mut asked = 0;
    let mut ends = || {
        asked += 1;
        asked < 2
    };
    assert_eq!(opened.log.mend_footers(&mut |_| Vec::new(), &mut ends).unwrap(), [""; 0]);
    assert_eq!(faults(&opened.log, 1).0, 1);
    assert!(records(&opened.log) == all);
    // A damaged block as well.
    files.get_mut(name).unwrap()[80] ^= 1;
    let opened = open(Arc::new(directory(&files)));
    let outcome = opened.log.mend_footers(&mut |_| Vec::new(), &mut || true);
    assert!(matches!(&outcome, Ok(mended) if mended.is_empty()) || matches!(outcome, Err(Error::Corrupt { .. })));
    assert!(faults(&opened.log, 1).0 > 0);
}
