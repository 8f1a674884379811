//! sled's files are never needed: whatever happens to them, everything acknowledged with `Sync` is there, because the
//! log has it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and its child tells its parent")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backend_sled::{Options, SledStore, open_blocking};
use eventstore_api::{Batch, Context, Durability, Event, EventStore, Version};
use tempfile::TempDir;

/// The environment variable with the directory of the child's store.
const CHILD: &str = "EVENTSTORE_TEST_DIRECTORY";

const SYNCED: u64 = 100;
const BUFFERED: u64 = 200;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn open(path: &Path) -> SledStore {
    let mut options = Options::new(path);
    options.store.index_events = 20; // so that sled is written repeatedly
    open_blocking(&options).unwrap()
}

/// Appends events with `Sync` and reports that, appends more with `Buffered` and reports that, and waits to be killed.
fn child(path: &Path) {
    let store = open(path);
    let append = |from: u64, to: u64, durability| {
        for first in (from..to).step_by(10) {
            let event = |n| Event::builder("Tested", format!("a{}", n % 7)).id(format!("id-{n}")).build().unwrap();
            let batch = Batch::new((first..first + 10).map(event).collect()).durability(durability);
            block_on(store.store_batch(&Context::background(), batch)).unwrap();
        }
        let digest = block_on(store.digest(&Context::background(), Version::new(u64::MAX))).unwrap();
        eprintln!("digest {digest}");
    };
    append(0, SYNCED, Durability::Sync);
    append(SYNCED, SYNCED + BUFFERED, Durability::Buffered);
    loop {
        std::thread::park();
    }
}

/// A store whose process was killed after its appends, and the digests of the synced events and of all.
fn killed(test: &str) -> (TempDir, [String; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, directory.path().join("store"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut digests = lines.filter_map(|line| line.unwrap().strip_prefix("digest ").map(str::to_owned));
    let digests = [digests.next().unwrap(), digests.next().unwrap()];
    child.kill().unwrap();
    child.wait().unwrap();
    (directory, digests)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => fs::copy(entry.path(), to).map(drop).unwrap(),
        }
    }
}

/// Checks that every event is there, by id and by aggregate, and that verification is clean.
#[track_caller]
fn has_all(path: &Path, digests: &[String; 2], what: &str) {
    let store = open(path);
    block_on(async {
        let ctx = Context::background();
        for (version, digest) in [SYNCED, SYNCED + BUFFERED].into_iter().zip(digests) {
            assert_eq!(store.digest(&ctx, Version::new(version)).await.unwrap().to_string(), *digest, "{what}");
        }
        for n in 0..SYNCED {
            let found = store.get(&ctx, &format!("id-{n}")).await.unwrap();
            assert_eq!(found.version.get(), n + 1, "{what}");
        }
        let report = store.verify(&ctx).await.unwrap();
        assert!(report.is_clean() && report.events == SYNCED + BUFFERED, "{what}: {report:?}");
        store.close().await.unwrap();
    });
    // It was closed cleanly, so sled's files are trusted now.
    let store = open(path);
    assert!(block_on(store.verify(&Context::background())).unwrap().is_clean(), "{what}, opened again");
}

/// The files below a directory, as relative paths.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => {
                files.extend(self::files(&path).into_iter().map(|file| Path::new(path.file_name().unwrap()).join(file)))
            }
            false => files.push(path.file_name().unwrap().into()),
        }
    }
    files
}

#[test]
fn what_was_synced_is_there_whatever_becomes_of_sleds_files() {
    if let Some(path) = env::var_os(CHILD) {
        return child(path.as_ref());
    }
    let (directory, digests) = killed("what_was_synced_is_there_whatever_becomes_of_sleds_files");
    let original = directory.path().join("store");
    let check = |what: &str, lose: &dyn Fn(&Path)| {
        let copied = tempfile::tempdir().unwrap();
        let path = copied.path().join("store");
        copy(&original, &path);
        lose(&path.join("index"));
        has_all(&path, &digests, what);
    };
    check("after a kill alone", &|_| {});
    check("without an index", &|index| fs::remove_dir_all(index).unwrap());
    check("with an empty index", &|index| {
        fs::remove_dir_all(index).unwrap();
        fs::create_dir(index).unwrap();
    });
    check("with a file for an index", &|index| {
        fs::remove_dir_all(index).unwrap();
        fs::create_dir(index).unwrap();
        fs::write(index.join("db"), b"something else").unwrap();
    });
    let files = files(&original.join("index"));
    assert!(files.iter().any(|file| file.ends_with("db")), "{files:?}");
    for file in &files {
        let len = fs::metadata(original.join("index").join(file)).unwrap().len();
        let name = file.display();
        check(&format!("without {name}"), &|index| fs::remove_file(index.join(file)).unwrap());
        for kept in [0, 1, len / 2, len.saturating_sub(1)] {
            check(&format!("with {kept} bytes of {name}"), &|index| {
                fs::File::options().write(true).open(index.join(file)).unwrap().set_len(kept).unwrap();
            });
        }
        for fill in [0, 0xff] {
            check(&format!("with bytes {fill} in {name}"), &|index| {
                fs::write(index.join(file), vec![fill; len as usize]).unwrap();
            });
        }
    }
    // As on a disk that has the files of a moment ago.
    let store = open(&original);
    drop(store);
    let newer = tempfile::tempdir().unwrap();
    copy(&original.join("index"), &newer.path().join("index"));
    check("with files of another moment", &|index| {
        for file in &files {
            let _ = fs::copy(newer.path().join("index").join(file), index.join(file));
        }
    });
}
