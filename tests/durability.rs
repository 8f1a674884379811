//! What is acknowledged is on disk: the command is killed at random moments, traced by `strace`, and run on a failing
//! disk.
//!
//! If `strace` is missing or not permitted, the tests that need it show as ignored.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic and say why")]

#[path = "../eventstore/tests/common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use tempfile::TempDir;

use common::BACKENDS;

/// The command serves stores, and reaches them.
const SERVES: bool = cfg!(all(feature = "serve", feature = "http"));

type Test = fn(&'static str) -> Result<(), Failed>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    if !BACKENDS.is_empty() {
        let (strace, mounts) = (can_trace(), can_mount());
        if !strace {
            eprintln!("strace is missing or not permitted: tests that need it are ignored (apt-get install strace)");
        }
        if !mounts {
            eprintln!(
                "a file system cannot be mounted here: the tests that fill a disk are ignored (they need unshare)"
            );
        }
        let tests: [(&str, Test, bool); 13] = [
            ("what_was_printed_survives_fifty_kills", what_was_printed_survives_fifty_kills, true),
            ("an_import_survives_fifty_kills", an_import_survives_fifty_kills, true),
            ("a_killed_copy_goes_on", a_killed_copy_goes_on, true),
            ("every_answer_comes_after_a_sync", every_answer_comes_after_a_sync, strace),
            ("a_buffered_answer_comes_after_the_write", a_buffered_answer_comes_after_the_write, strace),
            ("concurrent_appends_share_syncs", concurrent_appends_share_syncs, strace),
            ("an_append_is_one_write_and_one_sync", an_append_is_one_write_and_one_sync, strace),
            ("a_kill_at_any_sync_or_renaming_is_no_damage", a_kill_at_any_sync_or_renaming_is_no_damage, strace),
            ("a_failing_sync_fences_and_acknowledges_nothing_false", a_failing_sync_fences, strace),
            ("a_failing_write_loses_nothing_that_was_acknowledged", a_failing_write_loses_nothing, strace),
            ("a_full_disk_that_gets_room_again_loses_nothing", a_full_disk_that_gets_room_again_loses_nothing, mounts),
            ("a_full_disk_behind_a_server_loses_nothing", a_full_disk_behind_a_server_loses_nothing, mounts && SERVES),
            ("a_backup_that_finds_no_room_leaves_nothing", a_backup_that_finds_no_room_leaves_nothing, mounts),
        ];
        for &backend in BACKENDS {
            for (name, test, can_run) in tests {
                let trial = Trial::test(name, move || test(backend)).with_kind(backend);
                trials.push(trial.with_ignored_flag(!can_run));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn can_trace() -> bool {
    let traced = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    traced.is_ok_and(|output| output.status.success())
}

/// A private file system, in a namespace that ends with the command.
const MOUNT: [&str; 5] = ["unshare", "--mount", "--map-root-user", "sh", "-c"];

fn can_mount() -> bool {
    let script = "mkdir disk && mount -t tmpfs -o size=1m none disk";
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new(MOUNT[0]).args(&MOUNT[1..]).arg(script).current_dir(directory.path()).output();
    mounted.is_ok_and(|output| output.status.success())
}

/// A temporary directory with a store of a backend in it.
struct Shell {
    directory: TempDir,
    backend: &'static str,
}

impl Shell {
    fn new(backend: &'static str) -> Self {
        Shell { directory: tempfile::tempdir().unwrap(), backend }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        self.prepare(Command::new(env!("CARGO_BIN_EXE_eventstore")), args)
    }

    /// The command under strace, whose output goes to the file `trace`.
    fn traced(&self, strace: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-o", "trace"]).args(strace).arg(env!("CARGO_BIN_EXE_eventstore"));
        self.prepare(command, args)
    }

    fn prepare(&self, mut command: Command, args: &[&str]) -> Command {
        command.current_dir(self.path()).env("EVENTSTORE_URL", format!("{}:./store", self.backend)).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn trace(&self) -> String {
        fs::read_to_string(self.path().join("trace")).unwrap()
    }

    /// Every event of the store, after checking that versions and revisions have no gaps.
    fn load(&self) -> Vec<Value> {
        let output = self.command(&["load"]).output().unwrap();
        assert!(output.status.success(), "the store opens: {}", String::from_utf8_lossy(&output.stderr));
        let events = parse_lines(&output.stdout);
        let mut revisions = HashMap::new();
        for (nth, event) in events.iter().enumerate() {
            assert_eq!(event["version"], nth as u64 + 1, "versions have no gaps");
            let revision = revisions.entry(event["aggregate_id"].to_string()).or_insert(0_u64);
            *revision += 1;
            assert_eq!(event["revision"], *revision, "revisions have no gaps");
        }
        events
    }

    /// Checks that everything answered is in the store at the answered position, and that the store is intact.
    fn holds(&self, answers: &[Value]) -> Vec<Value> {
        let verified = self.command(&["verify"]).output().unwrap();
        assert!(verified.status.success(), "{}", text_of(&verified));
        let events = self.load();
        for answer in answers {
            let version = answer["version"].as_u64().unwrap() as usize;
            let event = events.get(version - 1).unwrap_or_else(|| panic!("lost: {answer}"));
            assert_eq!((&event["id"], &event["revision"]), (&answer["id"], &answer["revision"]), "changed");
        }
        events
    }
}

/// The output of a command, for messages.
fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn parse_lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn event_line(prefix: &str, n: usize) -> String {
    format!(
        "{{\"id\":\"{prefix}-{n}\",\"type\":\"Tested\",\"aggregate_id\":\"aggregate-{}\",\"data\":{{\"n\":{n}}}}}\n",
        n % 7
    )
}

fn event_lines(prefix: &str, count: usize) -> String {
    (0..count).map(|n| event_line(prefix, n)).collect()
}

/// Sends all of `input` to the child while its output is read.
fn finish(mut child: Child, input: String) -> Output {
    let mut stdin = child.stdin.take().unwrap();
    // The command closes its input early when it fails.
    let feeding = thread::spawn(move || stdin.write_all(input.as_bytes()).ok());
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

/// A small pseudo-random number generator, so that a run can be repeated.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn what_was_printed_survives_fifty_kills(backend: &'static str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    let mut numbers = Numbers(42);
    let mut stored = 0;
    for cycle in 0..50 {
        let mut child = shell.command(&["append", "--concurrency", "64"]).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feeding = thread::spawn(move || {
            // Endless input: only the kill ends the command.
            let mut n = 0;
            while stdin.write_all(event_line(&format!("cycle-{cycle}"), n).as_bytes()).is_ok() {
                n += 1;
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut printed = Vec::new();
        // The moment is after a random number of answers, at any point of a group commit.
        for _ in 0..numbers.below(1500) {
            stdout.read_until(b'\n', &mut printed).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What is left in the pipe was printed as well; a line that the kill cut off was not.
        while stdout.read_until(b'\n', &mut printed).unwrap() > 0 {}
        printed.truncate(printed.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
        feeding.join().unwrap();
        let events = shell.holds(&parse_lines(&printed));
        assert!(events.len() >= stored, "nothing of an earlier cycle is lost");
        stored = events.len();
    }
    assert!(stored > 0, "the kills left something to check");
    Ok(())
}

/// Runs a command and kills it after up to `most` milliseconds. True if it was still running then.
fn kill_within(mut command: Command, numbers: &mut Numbers, most: u64) -> bool {
    let mut child = command.spawn().unwrap();
    // Any moment is as good as another, and there is nothing to wait for.
    thread::sleep(Duration::from_millis(numbers.below(most)));
    let was_running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    was_running
}

fn an_import_survives_fifty_kills(backend: &'static str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    fs::write(shell.path().join("events.jsonl"), event_lines("e", 60_000))?;
    let mut numbers = Numbers(7);
    let (mut kills, mut there) = (0, 0);
    for _ in 0..50 {
        kills += u32::from(kill_within(shell.command(&["import", "events.jsonl"]), &mut numbers, 250));
        if !shell.path().join("store/eventstore.json").exists() {
            continue; // killed before the store was created
        }
        let verified = shell.command(&["verify"]).output()?;
        assert!(verified.status.success(), "{}", text_of(&verified));
        let latest = String::from_utf8(shell.command(&["latest"]).output()?.stdout)?.trim().parse()?;
        assert!(latest >= there, "{latest} events, and there were {there} before");
        there = latest;
    }
    assert!(kills > 25, "{kills} of fifty kills came in time");
    let finished = shell.command(&["import", "events.jsonl"]).output()?;
    assert!(finished.status.success(), "{}", text_of(&finished));
    let undisturbed = shell.command(&["--store", &format!("{backend}:./other"), "import", "events.jsonl"]).output()?;
    assert!(undisturbed.status.success(), "{}", text_of(&undisturbed));
    let digest = |store: &str| shell.command(&["--store", &format!("{backend}:./{store}"), "digest"]).output();
    assert_eq!(text_of(&digest("store")?), text_of(&digest("other")?));
    Ok(())
}

fn a_killed_copy_goes_on(backend: &'static str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    assert!(finish(shell.command(&["import", "-"]).spawn()?, event_lines("e", 20_000)).status.success());
    let to = format!("{backend}:./copy");
    let mut numbers = Numbers(3);
    for _ in 0..10 {
        kill_within(shell.command(&["copy", "--to", &to]), &mut numbers, 300);
    }
    let copied = shell.command(&["copy", "--to", &to]).output()?;
    assert!(copied.status.success(), "{}", text_of(&copied));
    let loaded = |url: &str| shell.command(&["--store", url, "load"]).output();
    assert!(loaded(&to)?.stdout == loaded(&format!("{backend}:./store"))?.stdout, "the copy is the same");
    Ok(())
}

/// The calls in the trace, in order: finished syncs, and bytes printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Sync,
    Write,
    Print,
}

fn seen(trace: &str) -> Vec<Seen> {
    let done = |line: &str| !line.contains("<unfinished") && !line.contains(" = -1 ");
    let calls = |line: &str, names: &[&str]| names.iter().any(|name| line.contains(&format!("{name}(")));
    let of = |line: &str| match line {
        _ if line.contains("sync") && calls(line, &["fdatasync", "fsync"]) && done(line) => Some(Seen::Sync),
        _ if line.contains("sync resumed>") && done(line) => Some(Seen::Sync),
        _ if line.contains("write(1<") => Some(Seen::Print),
        // Written after a sync, as a record of it; losing it loses nothing.
        _ if line.contains("/store/eventstore.head>") => None,
        _ if line.contains("/store/") && calls(line, &["write", "pwrite64", "writev", "pwritev"]) => Some(Seen::Write),
        _ => None,
    };
    trace.lines().filter_map(of).collect()
}

const TRACED: [&str; 2] = ["-e", "trace=fdatasync,fsync,write,pwrite64,writev,pwritev"];

fn every_answer_comes_after_a_sync(backend: &'static str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    let child = shell.traced(&TRACED, &["append"]).spawn()?;
    let output = finish(child, event_lines("e", 40));
    assert_eq!(parse_lines(&output.stdout).len(), 40);
    let seen = seen(&shell.trace());
    assert_eq!(seen.iter().filter(|&&seen| seen == Seen::Print).count(), 40, "one answer at a time");
    for (nth, answer) in seen.split_inclusive(|&seen| seen == Seen::Print).take(40).enumerate() {
        assert!(answer.contains(&Seen::Sync), "no sync before answer {nth}");
    }
    shell.holds(&parse_lines(&output.stdout));
    Ok(())
}

fn a_buffered_answer_comes_after_the_write(backend: &'static str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    let child = shell.traced(&TRACED, &["append", "--durability", "buffered"]).spawn()?;
    let output = finish(child, event_lines("e", 10));
    assert_eq!(parse_lines(&output.stdout).len(), 10);
    let seen = seen(&shell.trace());
    for (nth, answer) in seen.split_inclusive(|&seen| seen == Seen::Print).take(10).enumerate() {
        assert!(answer.contains(&Seen::Write), "no write before answer {nth}");
    }
    let closing = seen.split(|&seen| seen == Seen::Print).next_back().unwrap_or_default();
    assert!(closing.contains(&Seen::Sync), "closing syncs what is left");
    Ok(())
}

fn concurrent_appends_share_syncs(backend: &'static str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    let child = shell.traced(&TRACED, &["append", "--concurrency", "64"]).spawn()?;
    let output = finish(child, event_lines("e", 1000));
    assert_eq!(parse_lines(&output.stdout).len(), 1000);
    let syncs = seen(&shell.trace()).into_iter().filter(|&seen| seen == Seen::Sync).count();
    assert!(syncs < 500, "{syncs} syncs for 1000 events");
    Ok(())
}

/// Calls that change the metadata of a file or wait for a disk, and writes to the log.
const ON_THE_WAY: &str = "trace=fdatasync,fsync,sync,syncfs,sync_file_range,msync,ftruncate,fallocate,rename,renameat2,unlink,\
                          openat,write,pwrite64,writev,pwritev";

fn an_append_is_one_write_and_one_sync(backend: &'static str) -> Result<(), Failed> {
    const EVENTS: usize = 60;
    let shell = Shell::new(backend);
    let child = shell.traced(&["-e", ON_THE_WAY], &["append"]).spawn()?;
    let output = finish(child, event_lines("e", EVENTS));
    assert_eq!(parse_lines(&output.stdout).len(), EVENTS);
    let trace = shell.trace();
    let thread_of = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    // The thread with the most writes to the log writes the groups. Other threads preallocate space and write the
    // index.
    let mut writes: HashMap<String, usize> = HashMap::new();
    let is_write = |line: &&str| line.contains("pwrite64(") && line.contains("/store/log/");
    trace.lines().filter(is_write).for_each(|line| *writes.entry(thread_of(line)).or_default() += 1);
    let (appends, _) = writes.into_iter().max_by_key(|(_, count)| *count).unwrap();
    let (mut calls, mut answers) = (Vec::<&str>::new(), 0);
    for line in trace.lines() {
        if line.contains("write(1<") {
            // The first append creates the first segment. Later, space that is not preallocated yet may be filled
            // first.
            let syncs = calls.iter().filter(|&&call| call == "fdatasync").count();
            let others = calls.iter().filter(|call| !["fdatasync", "pwrite64", "write"].contains(call)).count();
            assert!(answers == 0 || (syncs, others) == (1, 0), "before answer {answers}: {calls:?}");
            calls.clear();
            answers += 1;
        } else if thread_of(line) == appends && line.contains("/store/") && !line.contains("resumed>") {
            let call = line.split_whitespace().nth(1).and_then(|call| call.split('(').next());
            calls.extend(call);
        }
    }
    assert!(answers >= EVENTS, "one answer at a time");
    Ok(())
}

/// Runs appends on a store of ten events while calls of `syscall` fail from the `nth` on. Returns the error's code.
fn append_with_fault(backend: &'static str, syscall: &str, error: &str, nth: u32, concurrency: &str) -> String {
    let shell = Shell::new(backend);
    let before = finish(shell.command(&["append"]).spawn().unwrap(), event_lines("before", 10));
    assert!(before.status.success());
    let fault = format!("inject={syscall}:error={error}:when={nth}+");
    let strace = ["-e", &format!("trace={syscall}"), "-e", &fault];
    let child = shell.traced(&strace, &["append", "--concurrency", concurrency]).spawn().unwrap();
    let output = finish(child, event_lines("e", 3000));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(shell.trace().contains("(INJECTED)"), "call {nth} of {syscall} never came");
    assert!(!output.status.success(), "call {nth} of {syscall} failed, and the command did not notice");
    let mut answers = parse_lines(&before.stdout);
    answers.extend(parse_lines(&output.stdout));
    shell.holds(&answers);
    // When the disk works again, everything does, and a retry determines what was stored.
    let retried = finish(shell.command(&["append", "--batch", "100"]).spawn().unwrap(), event_lines("e", 3000));
    assert!(retried.status.success(), "{}", text_of(&retried));
    assert_eq!(shell.holds(&parse_lines(&retried.stdout)).len(), 3010, "each event once");
    stderr.split(['[', ']']).nth(1).unwrap_or(&stderr).to_owned()
}

fn a_failing_sync_fences(backend: &'static str) -> Result<(), Failed> {
    for concurrency in ["1", "64"] {
        let mut codes = Vec::new();
        // The first syncs belong to opening, which fails; all others belong to commits.
        for nth in 1..20 {
            codes.push(append_with_fault(backend, "fdatasync", "EIO", nth, concurrency));
            if codes.iter().filter(|code| *code == "outcome_unknown").count() == 4 {
                break;
            }
        }
        let in_commits: Vec<_> = codes.iter().skip_while(|code| *code != "outcome_unknown").collect();
        assert!(in_commits.len() >= 4, "{codes:?}");
        assert!(in_commits.iter().all(|code| *code == "outcome_unknown"), "{codes:?}");
    }
    Ok(())
}

fn a_failing_write_loses_nothing(backend: &'static str) -> Result<(), Failed> {
    for nth in [3, 4, 9, 20] {
        let code = append_with_fault(backend, "pwrite64", "ENOSPC", nth, "1");
        assert!(["outcome_unknown", "full", "cannot_open"].contains(&code.as_str()), "call {nth}: {code}");
    }
    Ok(())
}

/// Kills the creation of a store and its first checkpoint at each call that changes a directory or syncs.
fn a_kill_at_any_sync_or_renaming_is_no_damage(backend: &'static str) -> Result<(), Failed> {
    let mut kills = 0;
    // Calls are counted per thread: those of the opening hide as many of the indexer.
    for is_made_before in [false, true] {
        for syscall in ["fsync", "fdatasync", "rename", "renameat", "mkdir", "unlink", "ftruncate"] {
            let killed = (1..).take_while(|&nth| killed_at(backend, is_made_before, syscall, nth));
            kills += killed.count();
        }
    }
    assert!(kills > 20, "{kills} kills");
    Ok(())
}

/// Kills an import at a call, and checks the result. False if there was no such call.
fn killed_at(backend: &'static str, is_made_before: bool, syscall: &str, nth: usize) -> bool {
    let shell = Shell::new(backend);
    let url = format!("{backend}:./store?index_events=30&segment_size=64KiB");
    let run = |args: &[&str]| {
        let output = shell.command(&[&["--store", &url], args].concat()).output().unwrap();
        assert!(output.status.success(), "{backend}, {syscall} {nth}: {}", text_of(&output));
    };
    fs::write(shell.path().join("events.jsonl"), event_lines("e", 120)).unwrap();
    fs::write(shell.path().join("empty.jsonl"), "").unwrap();
    if is_made_before {
        run(&["import", "empty.jsonl"]);
    }
    let fault = format!("inject={syscall}:signal=KILL:when={nth}");
    let strace = ["-e", &format!("trace={syscall}"), "-e", &fault];
    let killed = shell.traced(&strace, &["--store", &url, "import", "events.jsonl"]).output().unwrap();
    if killed.status.success() {
        return false;
    }
    assert!(shell.trace().contains("killed by SIGKILL"), "{}", text_of(&killed));
    if shell.path().join("store/eventstore.json").exists() {
        run(&["verify"]);
    }
    run(&["import", "events.jsonl"]);
    assert_eq!(shell.holds(&[]).len(), 120, "{backend}, {syscall} {nth}");
    // sled's index is rebuilt after every unclean shutdown.
    let is_aside = shell.path().join("store/index.damaged").exists();
    assert!(backend == "sled" || !is_aside, "{backend}, {syscall} {nth}: the index was put aside as damaged");
    true
}

/// Imports on a disk of a few megabytes, enlarges the disk, and imports the same again.
const FULL_DISK: &str = r#"
    mkdir disk && mount -t tmpfs -o size=12m none disk || exit 99
    "$0" import events.jsonl > first 2>&1 && exit 98
    cat first
    mount -o remount,size=1g disk || exit 97
    "$0" latest && "$0" verify && "$0" import events.jsonl && "$0" verify && "$0" digest
"#;

fn a_full_disk_that_gets_room_again_loses_nothing(backend: &'static str) -> Result<(), Failed> {
    fill_the_disk(backend, FULL_DISK)
}

/// The same through a server: it answers reads while its disk is full, and is started again when there is room.
const FULL_DISK_SERVED: &str = r#"
    mkdir disk && mount -t tmpfs -o size=12m none disk && mkfifo ready || exit 99
    serve() {
        "$0" --store "$EVENTSTORE_URL" serve --listen "unix:$PWD/socket" 2> ready &
        server=$!
        exec 3< ready && read -r told <&3
    }
    serve
    served() { "$0" --store "unix:$PWD/socket" "$@"; }
    served import events.jsonl > first 2>&1 && exit 98
    cat first
    served latest && served load --limit 3 > /dev/null || exit 97
    kill "$server"; wait "$server"
    mount -o remount,size=1g disk || exit 96
    serve
    served latest && served verify && served import events.jsonl && served verify && served digest
    code=$?
    kill "$server"; wait "$server"
    exit $code
"#;

fn a_full_disk_behind_a_server_loses_nothing(backend: &'static str) -> Result<(), Failed> {
    fill_the_disk(backend, FULL_DISK_SERVED)
}

/// Runs a script that imports events on a disk that is too small, and again once it is larger.
fn fill_the_disk(backend: &'static str, script: &str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    let padding = "0123456789".repeat(200);
    let line = |n| format!(r#"{{"id":"e-{n}","type":"T","aggregate_id":"a-{}","data":"{padding}{n}"}}"#, n % 9) + "\n";
    fs::write(shell.path().join("events.jsonl"), (0..20_000).map(line).collect::<String>())?;
    let mut on_disk = Command::new(MOUNT[0]);
    on_disk.args(&MOUNT[1..]).args([script, env!("CARGO_BIN_EXE_eventstore")]);
    let output = shell.prepare(on_disk, &[]).env("EVENTSTORE_URL", format!("{backend}:./disk/store")).output()?;
    let text = text_of(&output);
    assert!(output.status.success(), "{:?}: {text}", output.status);
    assert!(text.starts_with("error[outcome_unknown]") || text.starts_with("error[full]"), "{text}");
    assert!(text.contains("o space left") || text.contains("disk is full"), "the cause is told: {text}");
    assert!(text.starts_with("error[outcome_unknown]") || text.contains("disk/store"), "and where: {text}");
    assert!(shell.command(&["import", "events.jsonl"]).output()?.status.success());
    let digest = shell.command(&["digest"]).output()?.stdout;
    assert_eq!(text.lines().last(), std::str::from_utf8(&digest)?.lines().last(), "nothing is lost or doubled");
    Ok(())
}

/// Backs up to a disk that is too small, and again after it was enlarged.
const FULL_TARGET: &str = r#"
    mkdir disk && mount -t tmpfs -o size=256k none disk || exit 99
    "$0" backup disk/backup && exit 98
    ls -A disk/backup
    mount -o remount,size=1g disk || exit 97
    "$0" backup disk/backup && EVENTSTORE_URL="$1:./disk/backup" "$0" digest && "$0" digest
"#;

fn a_backup_that_finds_no_room_leaves_nothing(backend: &'static str) -> Result<(), Failed> {
    let shell = Shell::new(backend);
    assert!(finish(shell.command(&["import", "-"]).spawn()?, event_lines("e", 20_000)).status.success());
    let mut on_disk = Command::new(MOUNT[0]);
    on_disk.args(&MOUNT[1..]).args([FULL_TARGET, env!("CARGO_BIN_EXE_eventstore")]);
    let output = shell.prepare(on_disk, &[backend]).output()?;
    let text = text_of(&output);
    assert!(output.status.success(), "{:?}: {text}", output.status);
    let lines: Vec<_> = std::str::from_utf8(&output.stdout)?.lines().collect();
    let [latest, bytes, of_backup, of_store] = lines.as_slice() else { panic!("something was left: {text}") };
    assert!(latest.starts_with("latest_version: 20000") && bytes.starts_with("bytes_on_disk: "), "{text}");
    assert_eq!(of_backup, of_store);
    let error = std::str::from_utf8(&output.stderr)?;
    assert!(error.starts_with("error[engine]") || error.starts_with("error[cannot_open]"), "{error}");
    assert!(error.contains("o space left") || error.contains("disk is full"), "the cause is told: {error}");
    assert!(error.contains("disk/backup"), "and where: {error}");
    Ok(())
}
