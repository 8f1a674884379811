//! What a power cut leaves of names and of sectors. Each test runs this program again as a child that works in a directory
//! and loses power, and looks at what is left, for one seed or many.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use faulty_disk::{Call, Calls, Fault, Surviving, Trigger, arm, count, cut_power, watch};

/// The directory of the child and its seed, if this is one.
const DIRECTORY: &str = "FAULTY_DISK_TEST_DIRECTORY";
const SEED: &str = "FAULTY_DISK_TEST_SEED";

const SEEDS: u64 = 60;

/// Files with their content, and directories.
type Tree = BTreeMap<String, Option<String>>;

fn tree(directory: &Path) -> Tree {
    fn add(directory: &Path, prefix: &str, tree: &mut Tree) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                add(&entry.path(), &format!("{name}/"), tree);
                tree.insert(name, None);
            } else {
                tree.insert(name, Some(String::from_utf8(fs::read(entry.path()).unwrap()).unwrap()));
            }
        }
    }
    let mut tree_of_all = Tree::new();
    add(directory, "", &mut tree_of_all);
    tree_of_all
}

fn expected(entries: &[(&str, &str)]) -> Tree {
    let content = |content: &str| (content != "/").then(|| content.to_owned());
    entries.iter().map(|(name, it)| ((*name).to_owned(), content(it))).collect()
}

/// What is left when `work`, which has to cut the power, was done in a child with this seed.
fn left(test: &str, seed: u64, work: impl FnOnce(&Path, u64)) -> Tree {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        watch(Path::new(&directory));
        work(Path::new(&directory), std::env::var(SEED).unwrap().parse().unwrap());
        std::process::exit(0);
    }
    let directory = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory.path())
        .env(SEED, seed.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr).into_owned();
    assert_eq!(child.status.signal(), Some(9), "{:?}: {text}", child.status);
    tree(directory.path())
}

/// The different trees that are left with many seeds.
fn all_left(test: &str, work: impl Fn(&Path, u64)) -> BTreeSet<Tree> {
    (0..SEEDS).map(|seed| left(test, seed, &work)).collect()
}

/// A file with synced content. Its name is not.
fn put(path: &Path, content: &str) {
    let mut file = File::create(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file.sync_all().unwrap();
}

fn sync(directory: &Path) {
    File::open(directory).unwrap().sync_all().unwrap();
}

const BEFORE: &[(&str, &str)] = &[
    ("deleted", "1"),
    ("empty", "/"),
    ("full", "/"),
    ("full/file", "2"),
    ("linked", "3"),
    ("old", "4"),
    ("replaced", "5"),
    ("replacing", "6"),
];

const AFTER: &[(&str, &str)] = &[
    ("link", "3"),
    ("linked", "3"),
    ("made", "/"),
    ("made/file", "7"),
    ("new", "8"),
    ("renamed", "4"),
    ("replaced", "6"),
];

/// Changes names in every way.
fn change_names(directory: &Path) {
    let at = |name: &str| directory.join(name);
    for (name, content) in BEFORE {
        if *content == "/" { fs::create_dir(at(name)).unwrap() } else { put(&at(name), content) }
    }
    sync(&at("full"));
    sync(directory);
    fs::remove_file(at("deleted")).unwrap();
    fs::remove_dir(at("empty")).unwrap();
    fs::remove_dir_all(at("full")).unwrap();
    fs::hard_link(at("linked"), at("link")).unwrap();
    fs::create_dir(at("made")).unwrap();
    put(&at("made/file"), "7");
    put(&at("new"), "8");
    fs::rename(at("old"), at("renamed")).unwrap();
    fs::rename(at("replacing"), at("replaced")).unwrap();
    assert_eq!(tree(directory), expected(AFTER));
}

#[test]
fn names_are_taken_back_that_were_not_synced() {
    let left = left("names_are_taken_back_that_were_not_synced", 0, |directory, _| {
        change_names(directory);
        sync(&directory.join("made")); // which is not its own name
        cut_power(Surviving::None);
    });
    assert_eq!(left, expected(BEFORE));
}

#[test]
fn a_sync_of_their_directory_makes_names_safe() {
    let left = left("a_sync_of_their_directory_makes_names_safe", 0, |directory, _| {
        change_names(directory);
        sync(&directory.join("made"));
        sync(directory);
        fs::write(directory.join("later"), "9").unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, expected(AFTER));
}

#[test]
fn names_may_survive_without_what_was_written() {
    let left = left("names_may_survive_without_what_was_written", 0, |directory, _| {
        put(&directory.join("file"), "old");
        fs::write(directory.join("new"), "new").unwrap();
        fs::rename(directory.join("new"), directory.join("file")).unwrap();
        cut_power(Surviving::Names);
    });
    assert_eq!(left, expected(&[("file", "")]));
}

#[test]
fn the_first_changes_of_names_survive() {
    let outcomes = all_left("the_first_changes_of_names_survive", |directory, seed| {
        for name in ["a", "b", "c"] {
            put(&directory.join(name), "");
        }
        cut_power(Surviving::First(seed));
    });
    let all = [("a", ""), ("b", ""), ("c", "")];
    assert_eq!(outcomes, (0..=3).map(|first| expected(&all[..first])).collect());
}

#[test]
fn any_names_survive() {
    let outcomes = all_left("any_names_survive", |directory, seed| {
        put(&directory.join("c"), "");
        sync(directory);
        put(&directory.join("a"), "");
        put(&directory.join("b"), "");
        fs::remove_file(directory.join("c")).unwrap();
        cut_power(if seed % 2 == 0 { Surviving::Some(seed) } else { Surviving::Holes(seed) });
    });
    assert_eq!(outcomes.len(), 8, "every subset of three: {outcomes:?}");
}

#[test]
fn what_was_renamed_over_and_over_is_there_once() {
    let outcomes = all_left("what_was_renamed_over_and_over_is_there_once", |directory, seed| {
        let at = |name: &str| directory.join(name);
        fs::create_dir(at("to")).unwrap();
        put(&at("log"), "1");
        sync(directory);
        for (number, content) in ["2", "3"].into_iter().enumerate() {
            fs::rename(at("log"), at(&format!("to/{number}"))).unwrap();
            put(&at("log"), content);
        }
        cut_power(Surviving::Some(seed));
    });
    for outcome in &outcomes {
        let mut files: Vec<_> = outcome.values().flatten().map(String::as_str).collect();
        files.sort_unstable();
        assert!(matches!(files[..], ["1"] | ["1", "2"] | ["1", "2", "3"]), "no file without the older: {outcome:?}");
    }
    assert_eq!(outcomes.len(), 5, "any number of the four changes: {outcomes:?}");
}

#[test]
fn what_is_in_a_directory_that_was_not_synced_goes_with_it() {
    let outcomes = all_left("what_is_in_a_directory_that_was_not_synced_goes_with_it", |directory, seed| {
        let at = |name: &str| directory.join(name);
        put(&at("file"), "1");
        sync(directory);
        fs::create_dir(at("made")).unwrap();
        put(&at("made/synced"), "2");
        sync(&at("made"));
        fs::rename(at("file"), at("made/file")).unwrap();
        cut_power(Surviving::Some(seed));
    });
    let made = [("made", "/"), ("made/synced", "2")];
    let with = |file| expected(&[&made[..], &[(file, "1")]].concat());
    assert_eq!(outcomes, [expected(&[("file", "1")]), with("file"), with("made/file")].into());
}

#[test]
fn a_rename_is_safe_with_the_directory_it_goes_to() {
    let left = left("a_rename_is_safe_with_the_directory_it_goes_to", 0, |directory, _| {
        let at = |name: &str| directory.join(name);
        for name in ["from", "to", "other"] {
            fs::create_dir(at(name)).unwrap();
        }
        sync(directory);
        put(&at("from/synced"), "1");
        put(&at("from/not"), "2");
        sync(&at("from"));
        fs::rename(at("from/synced"), at("to/synced")).unwrap();
        sync(&at("to"));
        fs::rename(at("from/not"), at("other/not")).unwrap();
        sync(&at("from"));
        cut_power(Surviving::None);
    });
    let directories = [("from", "/"), ("other", "/"), ("to", "/")];
    assert_eq!(left, expected(&[&directories[..], &[("from/not", "2"), ("to/synced", "1")]].concat()));
}

#[test]
fn a_failed_sync_of_a_directory_makes_its_names_never_safe() {
    let left = left("a_failed_sync_of_a_directory_makes_its_names_never_safe", 0, |directory, _| {
        put(&directory.join("before"), "");
        arm(Trigger { calls: Calls::of(Call::Sync), nth: 1 }, Fault::FailOnce(libc::EIO));
        File::open(directory).unwrap().sync_all().unwrap_err();
        put(&directory.join("behind"), "");
        sync(directory);
        cut_power(Surviving::None);
    });
    assert_eq!(left, expected(&[("behind", "")]));
}

#[test]
fn what_was_to_be_safe_with_a_failed_sync_is_safe_with_a_later_change_of_the_name() {
    let test = "what_was_to_be_safe_with_a_failed_sync_is_safe_with_a_later_change_of_the_name";
    let left = left(test, 0, |directory, _| {
        put(&directory.join("log"), "1");
        sync(directory);
        fs::rename(directory.join("log"), directory.join("old")).unwrap();
        arm(Trigger { calls: Calls::of(Call::Sync), nth: 1 }, Fault::FailOnce(libc::EIO));
        File::open(directory).unwrap().sync_all().unwrap_err();
        put(&directory.join("log"), "2");
        sync(directory);
        cut_power(Surviving::None);
    });
    assert_eq!(left, expected(&[("log", "2"), ("old", "1")]));
}

#[test]
fn names_are_seen_that_are_told_from_a_directory() {
    let left = left("names_are_seen_that_are_told_from_a_directory", 0, |directory, _| {
        let before = count(Call::Name);
        put(&directory.join("a"), "1");
        put(&directory.join("b"), "2");
        put(&directory.join("c"), "3");
        sync(directory);
        let handle = File::open(directory).unwrap();
        let name = |name: &str| CString::new(name).unwrap();
        let (at, a, b, new) = (handle.as_raw_fd(), name("a"), name("./b"), name("new//"));
        let (made, c) = (name("made"), CString::new(directory.join("c").as_os_str().as_bytes()).unwrap());
        // SAFETY: The names are terminated, and nothing else is asked of the calls.
        unsafe {
            assert_eq!(libc::unlinkat(at, a.as_ptr(), 0), 0);
            assert_eq!(libc::renameat2(at, b.as_ptr(), libc::AT_FDCWD, c.as_ptr(), libc::RENAME_EXCHANGE), 0);
            assert_eq!(libc::mkdirat(at, new.as_ptr(), 0o700), 0);
            let fd = libc::openat(at, made.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600);
            assert!(fd >= 0 && libc::fsync(fd) == 0);
            assert_eq!(libc::unlinkat(at, made.as_ptr(), libc::AT_REMOVEDIR), -1);
        }
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOTDIR));
        assert_eq!(tree(directory), expected(&[("b", "3"), ("c", "2"), ("made", ""), ("new", "/")]));
        assert_eq!(count(Call::Name) - before, 8);
        cut_power(Surviving::None);
    });
    assert_eq!(left, expected(&[("a", "1"), ("b", "2"), ("c", "3")]));
}

#[test]
fn a_change_of_a_name_can_fail() {
    let left = left("a_change_of_a_name_can_fail", 0, |directory, _| {
        arm(Trigger { calls: Calls::of(Call::Name), nth: 2 }, Fault::Fail(libc::EIO));
        put(&directory.join("file"), "");
        let failed = [
            File::create(directory.join("other")).map(drop),
            fs::rename(directory.join("file"), directory.join("renamed")),
            fs::remove_file(directory.join("file")),
            fs::create_dir(directory.join("directory")),
        ];
        assert!(failed.iter().all(|it| it.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO))));
        sync(directory);
        cut_power(Surviving::None);
    });
    assert_eq!(left, expected(&[("file", "")]));
}

#[test]
fn emptying_a_file_is_taken_back() {
    let left = left("emptying_a_file_is_taken_back", 0, |directory, _| {
        put(&directory.join("file"), "old");
        sync(directory);
        fs::write(directory.join("file"), "newer").unwrap();
        cut_power(Surviving::None);
    });
    assert_eq!(left, expected(&[("file", "old")]));
}

#[test]
fn what_was_cut_off_is_not_mixed_with_what_came_there() {
    let outcomes = all_left("what_was_cut_off_is_not_mixed_with_what_came_there", |directory, seed| {
        put(&directory.join("file"), &"a".repeat(2000));
        sync(directory);
        fs::write(directory.join("file"), "b".repeat(2000)).unwrap();
        cut_power(Surviving::Holes(seed));
    });
    let contents: BTreeSet<_> = outcomes.iter().map(|it| letters(it["file"].as_ref().unwrap())).collect();
    assert!(contents.contains("aaaa") && contents.contains("bbbb"), "{contents:?}");
    assert!(contents.iter().any(|it| it.contains('0') && it.contains('b')), "{contents:?}");
    for content in contents {
        assert!(!content.contains('a') || content == "aaaa", "{content}");
    }
}

/// A letter for each sector, of those that are of one letter; 0 for zeros.
fn letters(content: &str) -> String {
    let letter = |sector: &[u8]| match sector[0] {
        0 => '0',
        letter => char::from(letter),
    };
    content.as_bytes().chunks(512).filter(|it| it.iter().all(|byte| *byte == it[0])).map(letter).collect()
}

/// What is left of the letters of the sectors when three are written over three, and three behind them.
fn overwritten(test: &str, surviving: fn(u64) -> Surviving) -> BTreeSet<String> {
    let outcomes = all_left(test, |directory, seed| {
        put(&directory.join("file"), &"a".repeat(3 * 512));
        sync(directory);
        let file = OpenOptions::new().write(true).open(directory.join("file")).unwrap();
        file.write_all_at(&[b'b'; 6 * 512], 0).unwrap();
        cut_power(surviving(seed));
    });
    let whole = |it: Tree| letters(it["file"].as_ref().unwrap());
    outcomes.into_iter().map(whole).collect()
}

#[test]
fn sectors_survive_in_any_order() {
    let outcomes = overwritten("sectors_survive_in_any_order", Surviving::Some);
    let inside: BTreeSet<_> = outcomes.iter().map(|it| &it[..3]).collect();
    assert_eq!(inside.len(), 8, "every subset of three: {inside:?}");
    let behind: BTreeSet<_> = outcomes.iter().map(|it| &it[3..]).collect();
    assert_eq!(behind, ["", "b", "bb", "bbb"].into(), "no holes");
}

#[test]
fn what_became_longer_may_have_holes() {
    let outcomes = overwritten("what_became_longer_may_have_holes", Surviving::Holes);
    let inside: BTreeSet<_> = outcomes.iter().map(|it| &it[..3]).collect();
    assert_eq!(inside.len(), 8, "every subset of three: {inside:?}");
    let behind: BTreeSet<_> = outcomes.iter().map(|it| &it[3..]).collect();
    assert!(["", "000", "0b0", "b00", "bbb"].iter().all(|it| behind.contains(it)), "{behind:?}");
}

#[test]
fn a_sector_is_as_it_was_at_some_time() {
    let outcomes = all_left("a_sector_is_as_it_was_at_some_time", |directory, seed| {
        put(&directory.join("file"), &".".repeat(1024));
        sync(directory);
        let file = OpenOptions::new().write(true).open(directory.join("file")).unwrap();
        for (at, text) in [(0, "a"), (510, "bbbb"), (1, "c")] {
            file.write_all_at(text.as_bytes(), at).unwrap();
        }
        cut_power(Surviving::Some(seed));
    });
    let told = |it: &Tree| it["file"].as_ref().unwrap().chars().filter(|it| *it != '.').collect::<String>();
    let outcomes: BTreeSet<_> = outcomes.iter().map(told).collect();
    let first = ["", "a", "abb", "acbb"]; // in the order of the writes
    let all = first.iter().flat_map(|first| [(*first).to_owned(), format!("{first}bb")]).collect();
    assert_eq!(outcomes, all);
}
