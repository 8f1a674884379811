//! What happens to a process whose disk fails. Each test runs this program again as a child that writes a file, and looks at
//! what is left.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use faulty_disk::{Call, Calls, Fault, Surviving, Trigger, arm, count, cut_power, disarm, fired, set_clock, watch};

/// The directory of the child, if this is one.
const DIRECTORY: &str = "FAULTY_DISK_TEST_DIRECTORY";

fn at(call: Call, nth: u64) -> Trigger {
    Trigger { calls: Calls::of(call), nth }
}

/// Runs `work` in a child, in a directory whose files are watched, and gives what is in the file `file` afterwards. The child
/// has to be killed, or to end well.
fn in_child(test: &str, is_killed: bool, work: impl FnOnce(&Path)) -> Vec<u8> {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        watch(Path::new(&directory));
        work(Path::new(&directory));
        std::process::exit(0);
    }
    let directory = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr).into_owned();
    assert_eq!(child.status.signal(), is_killed.then_some(9), "{:?}: {text}", child.status);
    assert!(is_killed || child.status.success(), "{:?}: {text}", child.status);
    fs::read(directory.path().join("file")).unwrap_or_default()
}

/// A new file, with a name that is safe.
fn create(directory: &Path) -> File {
    let file = File::create(directory.join("file")).unwrap();
    File::open(directory).unwrap().sync_all().unwrap();
    file
}

#[test]
fn what_is_stopped_changes_nothing_more_and_its_writes_can_be_made_safe() {
    let left = in_child("what_is_stopped_changes_nothing_more_and_its_writes_can_be_made_safe", true, |directory| {
        let mut file = create(directory);
        file.write_all(b"one ").unwrap();
        arm(at(Call::Sync, 1), Fault::Stop);
        file.sync_all().expect_err("it is stopped here");
        file.write_all(b"two ").expect_err("of whatever kind");
        file.set_len(0).expect_err("of whatever kind");
        fs::remove_file(directory.join("file")).expect_err("of whatever kind");
        assert!(fired());
        disarm();
        let mut next = OpenOptions::new().append(true).open(directory.join("file")).unwrap();
        next.sync_all().unwrap();
        next.write_all(b"three ").unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, b"one ");
}

#[test]
fn syncs_of_directories_can_be_meant_alone() {
    let left = in_child("syncs_of_directories_can_be_meant_alone", true, |directory| {
        let mut file = create(directory);
        arm(Trigger { calls: Calls::NAME_SYNCS, nth: 2 }, Fault::KillBefore);
        for line in [b"one ", b"two "] {
            file.write_all(line).unwrap();
            file.sync_all().unwrap();
        }
        File::open(directory).unwrap().sync_all().unwrap();
        file.write_all(b"three ").unwrap();
        file.sync_all().unwrap();
        File::open(directory).unwrap().sync_all().unwrap();
        file.write_all(b"never ").unwrap();
    });
    assert_eq!(left, b"one two three ");
}

/// What a power cut leaves of a file that was cut off, by a cut whose sync failed, and written behind that, safely.
fn left_behind_a_lost_cut(test: &str, surviving: Surviving) -> Vec<u8> {
    in_child(test, true, |directory| {
        let mut file = create(directory);
        file.write_all(b"one two and more").unwrap();
        file.sync_all().unwrap();
        file.set_len(4).unwrap();
        arm(at(Call::Sync, 1), Fault::FailOnce(5));
        file.sync_all().expect_err("it fails");
        file.write_all_at(b"three", 4).unwrap();
        file.sync_all().unwrap();
        cut_power(surviving);
    })
}

#[test]
fn what_is_safe_where_a_file_was_cut_off_stays_although_the_cut_is_lost() {
    let test = "what_is_safe_where_a_file_was_cut_off_stays_although_the_cut_is_lost";
    assert_eq!(left_behind_a_lost_cut(test, Surviving::None), b"one threend more");
}

#[test]
fn what_is_safe_where_a_file_was_cut_off_stays_although_the_cut_is_made_again() {
    let test = "what_is_safe_where_a_file_was_cut_off_stays_although_the_cut_is_made_again";
    // The first of the changes that are not safe, of which there is one.
    let left = left_behind_a_lost_cut(test, Surviving::First(1));
    assert!(left.starts_with(b"one three"), "{}", left.escape_ascii());
}

#[test]
fn a_kill_keeps_what_was_written() {
    let left = in_child("a_kill_keeps_what_was_written", true, |directory| {
        arm(at(Call::Write, 3), Fault::KillBefore);
        let mut file = create(directory);
        for text in ["one ", "two ", "three "] {
            file.write_all(text.as_bytes()).unwrap();
        }
    });
    assert_eq!(left, b"one two ");
}

#[test]
fn a_kill_comes_behind_a_write() {
    let left = in_child("a_kill_comes_behind_a_write", true, |directory| {
        arm(at(Call::Write, 2), Fault::KillAfter);
        let mut file = create(directory);
        for text in ["one ", "two ", "three "] {
            file.write_all(text.as_bytes()).unwrap();
        }
    });
    assert_eq!(left, b"one two ");
}

#[test]
fn a_kill_comes_amid_a_write() {
    let left = in_child("a_kill_comes_amid_a_write", true, |directory| {
        arm(at(Call::Write, 2), Fault::KillAmid);
        let mut file = create(directory);
        for len in [1000, 10_000] {
            file.write_all(&vec![7; len]).unwrap();
        }
    });
    assert_eq!(left, [7; 4096], "the kernel writes page by page");
}

#[test]
fn a_power_cut_takes_what_was_not_synced() {
    let left = in_child("a_power_cut_takes_what_was_not_synced", true, |directory| {
        let mut file = create(directory);
        file.write_all(b"one ").unwrap();
        file.sync_data().unwrap();
        file.write_all(b"two ").unwrap();
        file.write_all_at(b"O", 0).unwrap();
        file.set_len(2).unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, b"one ");
}

/// A map of a file that the cut makes shorter is the end of those who read it, but not before everything is taken back.
#[test]
fn a_power_cut_is_whole_while_others_read_a_map() {
    const OTHERS: usize = 200;
    let left = in_child("a_power_cut_is_whole_while_others_read_a_map", true, |directory| {
        let mut file = create(directory);
        file.write_all(b"kept").unwrap();
        file.sync_all().unwrap();
        let mapped = File::options().read(true).write(true).create_new(true).open(directory.join("mapped")).unwrap();
        mapped.set_len(4096).unwrap();
        file.write_all(b" and lost").unwrap();
        for nth in 0..OTHERS {
            fs::write(directory.join(nth.to_string()), vec![1; 64 << 10]).unwrap();
        }
        // SAFETY: A new map of a file that is open, at a place that the system chooses.
        let map =
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, mapped.as_raw_fd(), 0) };
        assert_ne!(map, libc::MAP_FAILED);
        let address = map as usize;
        std::thread::spawn(move || {
            loop {
                // SAFETY: The map is never unmapped.
                unsafe { std::ptr::read_volatile(address as *const u8) };
            }
        });
        cut_power(Surviving::None);
    });
    assert_eq!(left, b"kept");
}

#[test]
fn a_power_cut_at_a_sync_comes_before_it() {
    let left = in_child("a_power_cut_at_a_sync_comes_before_it", true, |directory| {
        let mut file = create(directory);
        arm(at(Call::Sync, 2), Fault::CutPower(Surviving::None));
        for text in ["one ", "two "] {
            file.write_all(text.as_bytes()).unwrap();
            file.sync_all().unwrap();
        }
    });
    assert_eq!(left, b"one ");
}

#[test]
fn a_file_opened_for_synced_writes_needs_no_sync() {
    let left = in_child("a_file_opened_for_synced_writes_needs_no_sync", true, |directory| {
        let plain = create(directory);
        plain.write_all_at(b"........", 0).unwrap();
        plain.sync_all().unwrap();
        let synced = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(directory.join("file")).unwrap();
        plain.write_all_at(b"aaaa", 0).unwrap();
        synced.write_all_at(b"bb", 2).unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, b"..bb....", "the older write is taken back, and the newer one over it is not");
}

#[test]
fn what_a_failed_sync_was_to_save_is_lost_for_ever() {
    let left = in_child("what_a_failed_sync_was_to_save_is_lost_for_ever", true, |directory| {
        let mut file = create(directory);
        file.write_all(b"one ").unwrap();
        file.sync_all().unwrap();
        arm(at(Call::Sync, 1), Fault::FailOnce(libc::EIO));
        file.write_all(b"two ").unwrap();
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync_all().unwrap(); // it says so
        file.write_all_at(b"O", 0).unwrap();
        file.sync_all().unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, b"One ");
}

#[test]
fn each_open_descriptor_is_told_once_of_a_failed_sync() {
    let left = in_child("each_open_descriptor_is_told_once_of_a_failed_sync", false, |directory| {
        let open = || OpenOptions::new().write(true).open(directory.join("file")).unwrap();
        let (mut one, two, closed) = (create(directory), open(), open());
        let (other, reused) = (File::create(directory.join("other")).unwrap(), closed.as_raw_fd());
        one.write_all(b"text").unwrap();
        arm(at(Call::Sync, 1), Fault::FailOnce(libc::EIO));
        one.sync_data().unwrap_err();
        drop(closed);
        let later = open();
        assert_eq!(later.as_raw_fd(), reused);
        later.sync_data().unwrap();
        other.sync_data().unwrap();
        one.sync_data().unwrap();
        assert_eq!(two.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
        two.sync_data().unwrap();
    });
    assert_eq!(left, b"text");
}

#[test]
fn what_is_lost_for_ever_reads_as_zeros_before_what_was_synced_later() {
    let left = in_child("what_is_lost_for_ever_reads_as_zeros_before_what_was_synced_later", true, |directory| {
        let mut file = create(directory);
        arm(at(Call::Sync, 1), Fault::FailOnce(libc::EIO));
        file.write_all(b"one ").unwrap();
        file.sync_all().unwrap_err();
        file.write_all(b"two ").unwrap();
        file.sync_all().unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, b"\0\0\0\0two ");
}

#[test]
fn what_survives_in_part_has_no_holes() {
    let left = in_child("what_survives_in_part_has_no_holes", true, |directory| {
        let mut file = create(directory);
        for letter in b"abcdefgh" {
            file.write_all(&[*letter; 700]).unwrap();
        }
        cut_power(Surviving::Some(7));
    });
    let wrote = b"abcdefgh".iter().flat_map(|letter| [*letter; 700]);
    assert!(left.iter().zip(wrote).all(|(got, wrote)| *got == wrote), "what is there was written");
    assert!(!left.is_empty() && left.len() < 5600, "{} bytes: the seed decides for some", left.len());
}

#[test]
fn calls_fail_until_the_disk_is_whole_again() {
    let left = in_child("calls_fail_until_the_disk_is_whole_again", false, |directory| {
        let mut file = create(directory);
        arm(at(Call::Write, 2), Fault::Fail(libc::ENOSPC));
        file.write_all(b"one ").unwrap();
        for _ in 0..3 {
            assert_eq!(file.write_all(b"two ").unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
        assert!(fired());
        disarm();
        arm(at(Call::Write, 1), Fault::WriteShort);
        assert_eq!(file.write(b"three ").unwrap(), 3);
        file.write_all(b"ee ").unwrap();
        assert_eq!(count(Call::Write), 6);
        let mut elsewhere = tempfile::tempfile().unwrap();
        elsewhere.write_all(b"not watched").unwrap();
        assert_eq!(count(Call::Write), 6);
        file.rewind().unwrap();
    });
    assert_eq!(left, b"one three ");
}

#[test]
fn a_copied_file_is_seen() {
    let left = in_child("a_copied_file_is_seen", true, |directory| {
        let mut elsewhere = tempfile::NamedTempFile::new().unwrap();
        elsewhere.write_all(b"content").unwrap();
        create(directory);
        fs::copy(elsewhere.path(), directory.join("file")).unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, b"", "it was not synced");
}

#[test]
fn a_clock_shows_what_it_is_set_to_and_is_right_again_afterwards() {
    in_child("a_clock_shows_what_it_is_set_to_and_is_right_again_afterwards", false, |_| {
        let (before, began) = (SystemTime::now(), Instant::now());
        let after = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        set_clock(&[300_000_000_000]);
        assert_eq!([SystemTime::now(), SystemTime::now()], [after(300_000_000_000); 2]);
        set_clock(&[-10, 7]);
        let mut shown = [SystemTime::now(), SystemTime::now(), SystemTime::now(), SystemTime::now()];
        shown.sort();
        let early = UNIX_EPOCH - Duration::from_secs(10);
        assert_eq!(shown, [early, early, after(7), after(7)], "in turn");
        assert!(began.elapsed() < Duration::from_secs(3600), "how much time has passed is another clock's matter");
        set_clock(&[]);
        assert!((before..before + Duration::from_secs(3600)).contains(&SystemTime::now()));
    });
}
