//! A store's directory after a power cut at each step of its creation. Each test runs this program again as a child
//! that creates one and loses power, and opens what is left.
//! one and loses power, and opens what is left.

#![cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use eventstore_kv::StoreDirectory;
use faulty_disk::{Calls, Fault, Surviving, Trigger, arm, cut_power, watch};

/// The directory of the child process, if this is one, and where and how it loses power.
const DIRECTORY: &str = "DIRECTORY_CUTS_DIRECTORY";
const NTH: &str = "DIRECTORY_CUTS_NTH";
const WAY: &str = "DIRECTORY_CUTS_WAY";

const WAYS: u64 = 12;

/// Lets `work` lose power at each of its system calls in each way, and after the last. Passes the directory that is
/// left to `look`, and whether the work was done.
fn at_each_call(test: &str, work: impl Fn(&Path), look: impl Fn(&Path, bool)) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
        let surviving = match number(WAY) {
            0 => Surviving::None,
            1 => Surviving::Names,
            seed if seed % 2 == 0 => Surviving::First(seed),
            seed => Surviving::Some(seed),
        };
        watch(Path::new(&directory));
        arm(Trigger { calls: Calls::ALL, nth: number(NTH) }, Fault::CutPower(surviving));
        work(Path::new(&directory));
        std::io::stdout().write_all(b"done\n").unwrap();
        cut_power(surviving);
    }
    for nth in 1..100 {
        let mut was_cut = false;
        for way in 0..WAYS {
            let directory = tempfile::tempdir().unwrap();
            let child = Command::new(std::env::current_exe().unwrap())
                .args([test, "--exact", "--nocapture", "--test-threads=1"])
                .env(DIRECTORY, directory.path())
                .env(NTH, nth.to_string())
                .env(WAY, way.to_string())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&child.stderr).into_owned();
            assert_eq!(child.status.signal(), Some(9), "{:?}: {text}", child.status);
            let is_done = String::from_utf8_lossy(&child.stdout).contains("done");
            was_cut |= !is_done;
            look(directory.path(), is_done);
        }
        if !was_cut {
            assert!(nth > 10, "there are {nth} calls only");
            return;
        }
    }
    panic!("the work comes to no end");
}

#[test]
fn a_power_cut_while_a_store_is_made_leaves_one_that_opens() {
    at_each_call(
        "a_power_cut_while_a_store_is_made_leaves_one_that_opens",
        |directory| {
            let made = StoreDirectory::open(&directory.join("a/store"), "one").unwrap();
            fs::write(made.path().join("data"), "the engine's").unwrap();
            made.mark().unwrap();
        },
        |directory, is_done| {
            let opened = StoreDirectory::open(&directory.join("a/store"), "one").unwrap();
            assert!(opened.is_marked() || !is_done, "it is made, and its mark is lost");
        },
    );
}

#[test]
fn a_power_cut_amid_a_backup_leaves_nothing_that_opens_as_a_whole_one() {
    at_each_call(
        "a_power_cut_amid_a_backup_leaves_nothing_that_opens_as_a_whole_one",
        |directory| {
            let made = StoreDirectory::begin_backup(&directory.join("a/backup"), "one", [7; 16]).unwrap();
            let parts = made.path().join("parts");
            fs::create_dir(&parts).unwrap();
            fs::write(parts.join("data"), "whole").unwrap();
            // Whoever fills a backup syncs its files.
            for synced in [parts.join("data"), parts] {
                File::open(synced).unwrap().sync_all().unwrap();
            }
            made.mark().unwrap();
        },
        |directory, is_done| {
            let backup = directory.join("a/backup");
            match StoreDirectory::open_existing(&backup, "one") {
                Ok(opened) if opened.is_marked() => {
                    assert_eq!(fs::read_to_string(backup.join("parts/data")).unwrap(), "whole");
                }
                other => assert!(!is_done, "it is made, and does not open: {other:?}"),
            }
        },
    );
}
