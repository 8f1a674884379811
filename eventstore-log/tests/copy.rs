//! Copies: complete ones, incremental ones, interruptions, and unsuitable targets.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Fault, SimDisk, by_chance};
use eventstore_log::{Directory, Error, Group, Known, Log, MemoryDirectory, Opened, Options, Page};

const ID: [u8; 16] = [5; 16];

fn open(files: &(impl Directory + Clone + 'static)) -> Opened {
    let options = Options { segment_size: 64 << 10, space_ahead: 0, ..Options::default() };
    Log::open(Arc::new(files.clone()), ID, &options, Known::default(), 0, &mut |_, _| {}).expect("opened")
}

fn append(opened: &mut Opened, count: u64, tag: u8) {
    for _ in 0..count {
        let mut group = Group::default();
        let number = opened.log.last() + 1;
        group.begin(number);
        group.push(&[&vec![tag ^ number as u8; 7000 + number as usize]]);
        opened.appender.as_mut().expect("sound").commit(&mut group, false).expect("committed");
    }
}

fn seal(opened: &Opened) {
    opened.log.checkpoint(opened.log.position(), b"", &mut |_| b"blob".to_vec()).expect("made");
}

fn records(log: &Log) -> Vec<(u64, Vec<u8>)> {
    let mut page = Page::default();
    while (page.records.len() as u64) < log.last() {
        log.read(page.records.len() as u64 + 1..u64::MAX, 1 << 20, usize::MAX, &mut page).expect("read");
    }
    page.contents().map(|(number, content)| (number, content.to_vec())).collect()
}

fn files(directory: &dyn Directory) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| {
        let (file, mut bytes) = (directory.open(&name).ok()?, Vec::new());
        file.read_at(&mut bytes, 0, usize::MAX / 2).ok()?;
        Some((name, bytes))
    };
    directory.list().expect("listed").into_iter().filter_map(read).collect()
}

#[test]
fn only_what_is_new_travels() {
    let (source, target) = (MemoryDirectory::default(), MemoryDirectory::default());
    let mut opened = open(&source);
    append(&mut opened, 30, 0);
    seal(&opened);
    let full = opened.log.copy_to(&target, &mut |_, _| true).expect("copied").expect("wanted");
    assert_eq!((full.record, full.bytes), (30, opened.log.len_bytes()));
    assert_eq!(opened.log.synced(), 30);
    assert_eq!(records(&open(&target).log), records(&opened.log));

    let again = opened.log.copy_to(&target, &mut |_, _| panic!("nothing to do")).expect("copied").expect("wanted");
    assert_eq!((again.record, again.bytes), (30, 0));

    append(&mut opened, 20, 0);
    let increment = opened.log.copy_to(&target, &mut |done, total| done <= total).expect("copied").expect("wanted");
    assert_eq!(increment.record, 50);
    let unsealed: u64 = opened.log.segments().iter().filter(|segment| !segment.is_sealed).map(|s| s.bytes).sum();
    assert_eq!(increment.bytes, unsealed);
    assert_eq!(records(&open(&target).log), records(&opened.log));

    seal(&opened);
    opened.log.copy_to(&target, &mut |_, _| true).expect("copied").expect("wanted");
    let segments = |opened: &Opened| opened.log.segments();
    assert_eq!(segments(&open(&target)), segments(&opened));
    assert!(files(&target).keys().all(|name| name.ends_with(".seg")));
}

#[test]
fn an_empty_log_is_copied_as_nothing() {
    let (source, target) = (MemoryDirectory::default(), MemoryDirectory::default());
    let copied = open(&source).log.copy_to(&target, &mut |_, _| false).expect("copied").expect("wanted");
    assert_eq!((copied.record, copied.bytes), (0, 0));
    assert!(files(&target).is_empty());
}

#[test]
fn a_target_that_went_its_own_way_is_left_alone() {
    let source = MemoryDirectory::default();
    let mut opened = open(&source);
    append(&mut opened, 12, 0);
    let diverge = |sealed: bool, more: u64| {
        let target = MemoryDirectory::default();
        opened.log.copy_to(&target, &mut |_, _| true).expect("copied");
        let mut own = open(&target);
        append(&mut own, more, 1);
        if sealed {
            seal(&own);
        }
        drop(own);
        target
    };
    let targets = [diverge(false, 1), diverge(false, 12), diverge(true, 12)];
    append(&mut opened, 30, 0);
    seal(&opened);
    let foreign = MemoryDirectory::default();
    let other = Log::open(Arc::new(foreign.clone()), [9; 16], &Options::default(), Known::default(), 0, &mut |_, _| {});
    append(&mut other.expect("opened"), 3, 0);
    let other_life = MemoryDirectory::default();
    append(&mut open(&other_life), 3, 0);
    let longer = MemoryDirectory::default();
    opened.log.copy_to(&longer, &mut |_, _| true).expect("copied");
    append(&mut open(&longer), 30, 0);
    let torn = MemoryDirectory::default();
    torn.create("0000000001-0.seg").expect("created").write_at(&[7; 100], 0).expect("written");
    for target in targets.iter().chain([&foreign, &other_life, &longer, &torn]) {
        let before = files(target);
        let copied = opened.log.copy_to(target, &mut |_, _| true);
        assert!(matches!(copied, Err(Error::Unsupported { .. })), "{copied:?}");
        assert!(files(target) == before);
    }
}

#[test]
fn a_target_that_is_used_as_a_log_and_behind_is_brought_up_to_date() {
    let (source, target) = (MemoryDirectory::default(), MemoryDirectory::default());
    let mut opened = open(&source);
    append(&mut opened, 25, 0);
    opened.log.copy_to(&target, &mut |_, _| true).expect("copied");
    seal(&open(&target));
    append(&mut opened, 25, 0);
    opened.log.copy_to(&target, &mut |_, _| true).expect("copied");
    let copy = open(&target);
    assert_eq!(records(&copy.log), records(&opened.log));
    assert_eq!(copy.tail.expect("its own").record, 25);
}

#[test]
fn a_copy_that_is_not_wanted_any_more_changes_nothing() {
    let (source, target) = (MemoryDirectory::default(), MemoryDirectory::default());
    let mut opened = open(&source);
    append(&mut opened, 12, 0);
    opened.log.copy_to(&target, &mut |_, _| true).expect("copied");
    append(&mut opened, 60, 0);
    let before = files(&target);
    for most in 0..7 {
        let mut asked = 0;
        let mut go_on = |_, _| {
            asked += 1;
            asked <= most
        };
        assert_eq!(opened.log.copy_to(&target, &mut go_on).expect("no error"), None, "{most}");
        assert!(files(&target) == before, "{most}");
    }
}

/// At any call the copy or the power fails: the target is a prefix, and the next copy completes it.
#[test]
fn whatever_interrupts_a_copy_leaves_a_beginning() {
    let source = MemoryDirectory::default();
    let mut opened = open(&source);
    append(&mut opened, 12, 0);
    let first = SimDisk::default();
    opened.log.copy_to(&first, &mut |_, _| true).expect("copied");
    append(&mut opened, 20, 0);
    seal(&opened);
    append(&mut opened, 3, 0);
    let all = records(&opened.log);
    let mut interrupted = 0;
    for call in 1.. {
        let mut is_over = false;
        for (fault, seed) in [(Fault::Error, 0), (Fault::Full, 0), (Fault::Down, 1), (Fault::Down, 2), (Fault::Down, 3)]
        {
            let target = first.after_kill();
            target.fail_after(call, fault, seed);
            let copied = opened.log.copy_to(&target, &mut |_, _| true);
            is_over |= matches!(copied, Ok(Some(_)));
            interrupted += u64::from(copied.is_err());
            for target in [target.after_kill(), target.after_power_cut(&mut by_chance(call * 8 + seed))] {
                let there = records(&open(&target.after_kill()).log);
                assert!(there.len() >= 12 && there == all[..there.len()], "{call} {fault:?}");
                opened.log.copy_to(&target, &mut |_, _| true).expect("copied").expect("wanted");
                let target = target.after_power_cut(&mut by_chance(call));
                assert!(records(&open(&target).log) == all);
                assert!(files(&target).keys().all(|name| name.ends_with(".seg")));
            }
        }
        if is_over {
            break;
        }
    }
    assert!(interrupted > 50, "{interrupted}");
}
