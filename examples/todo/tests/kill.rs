//! Two lists, each a process, killed again and again while they are changed and synced: what was acknowledged is there once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use eventstore::{CancellationToken, Store, Version};
use eventstore_server::{Address, Listener, Server, serve};
use fastrand::Rng;
use todo::Todos;
use todo::domain::TodoEvent;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// Of each list.
const ROUNDS: usize = 30;
const SEED: u64 = 7;
/// Where nobody listens.
const NOBODY: &str = "http://127.0.0.1:9";

/// Somebody with a list.
struct Device {
    name: &'static str,
    directory: PathBuf,
    hub: String,
    random: Rng,
    /// How many texts were made.
    texts: usize,
    /// Texts whose `add` returned.
    added: Vec<String>,
    /// Texts of to-dos whose `done` returned.
    done: Vec<String>,
    /// Commands that were cut off.
    cut: usize,
}

impl Device {
    fn command(&self, args: &[&str]) -> Command {
        self.command_with(&self.hub, args)
    }

    fn command_with(&self, hub: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_todo"));
        command.arg(&self.directory).args(["--hub", hub]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn text(&mut self) -> String {
        self.texts += 1;
        format!("{}-{}", self.name, self.texts)
    }

    /// A command is killed at some moment, which may be behind its end.
    async fn kill_one_command(&mut self) {
        let text = self.text();
        let args: &[&str] = if self.random.bool() { &["add", &text] } else { &["sync"] };
        let mut child = self.command(args).spawn().expect("started");
        // Not a wait for something: whatever the moment, nothing may be lost.
        tokio::time::sleep(Duration::from_micros(self.random.u64(0..40_000))).await;
        child.start_kill().expect("SIGKILL, if it still runs");
        let output = child.wait_with_output().await.expect("ended");
        self.check(&output);
        self.note(&String::from_utf8(output.stdout).expect("text"));
    }

    /// Many commands at once, while it syncs or is offline; it is killed behind some of their answers.
    async fn kill_while_it_watches(&mut self, round: usize) {
        let is_online = self.random.bool();
        let (hub, state) = if is_online { (&*self.hub, "-- live") } else { (NOBODY, "-- offline") };
        let mut child = self.command_with(hub, &["watch"]).spawn().expect("started");
        let commands = self.random.usize(1..20);
        let mut lines = String::new();
        for _ in 0..commands {
            let text = self.text();
            // The same few for both, and in the next round others.
            let number = 3 * round + self.random.usize(1..5);
            lines += &match self.random.u8(0..10) {
                0..6 => format!("add {text}\n"),
                6..8 => format!("done {number}\n"),
                _ => format!("rename {number} {text}\n"),
            };
        }
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(lines.as_bytes()).await.expect("written");
        let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (until, mut answers, mut is_there) = (self.random.usize(0..=commands), 0, false);
        while answers < until {
            match output.next_line().await.expect("text") {
                Some(line) => {
                    answers += usize::from(self.note(&line));
                    is_there |= line.starts_with(state);
                }
                None => panic!("it ended by itself: {:?}", child.wait_with_output().await),
            }
        }
        // Half of them have come to the end of a sync, or know that they are offline.
        let is_late = self.random.bool();
        while is_late && !is_there {
            match output.next_line().await.expect("text") {
                Some(line) => (answers, is_there) = (answers + usize::from(self.note(&line)), line.starts_with(state)),
                None => panic!("it ended by itself: {:?}", child.wait_with_output().await),
            }
        }
        child.start_kill().expect("SIGKILL");
        // What it told before it was killed is told.
        while let Some(line) = output.next_line().await.expect("text") {
            answers += usize::from(self.note(&line));
        }
        self.check(&child.wait_with_output().await.expect("ended"));
        self.cut += commands - answers;
    }

    /// Takes note of answers, and says whether the last line was one.
    fn note(&mut self, lines: &str) -> bool {
        let mut is_answer = false;
        for line in lines.lines() {
            let answer = ["added: ", "done: ", "done already: ", "renamed: ", "no: "]
                .into_iter()
                .find_map(|kind| Some((kind, line.strip_prefix(kind)?)));
            is_answer = answer.is_some();
            match answer {
                Some(("added: ", text)) => self.added.push(text.to_owned()),
                Some(("done: " | "done already: ", text)) => self.done.push(text.to_owned()),
                _ => {}
            }
        }
        is_answer
    }

    /// It was killed, or had ended well before.
    fn check(&self, output: &Output) {
        let is_killed = output.status.code().is_none();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!((is_killed || output.status.success()) && told.is_empty(), "{}: {} {told}", self.name, output.status);
    }

    async fn kill(&mut self, round: usize) {
        match self.random.u8(0..4) {
            0 => self.kill_one_command().await,
            _ => self.kill_while_it_watches(round).await,
        }
    }

    async fn shown(&self, args: &[&str]) -> String {
        let output = self.command(args).stdin(Stdio::null()).output().await.expect("started");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_everywhere_once_however_often_the_lists_are_killed() {
    let test = tokio::time::timeout(Duration::from_secs(100), kills());
    test.await.expect("it ends within its time");
}

async fn kills() {
    let directory = tempfile::tempdir().expect("made");
    let store = format!("lmdb:{}", directory.path().join("hub").display());
    let store = eventstore::open(&store).await.expect("opened");
    let listener = Listener::bind(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).await.expect("a free port");
    let (hub, stop) = (listener.url(), CancellationToken::new());
    let serving = tokio::spawn(serve(Server::new(store.clone()), listener, stop.clone()));

    let mut devices = ["laptop", "phone"].map(|name| Device {
        name,
        directory: directory.path().join(name),
        hub: hub.clone(),
        random: Rng::with_seed(SEED + name.len() as u64),
        texts: 0,
        added: Vec::new(),
        done: Vec::new(),
        cut: 0,
    });
    for round in 0..ROUNDS {
        let [laptop, phone] = &mut devices;
        tokio::join!(laptop.kill(round), phone.kill(round));
    }
    let [laptop, phone] = &devices;
    for device in [laptop, phone, laptop] {
        device.shown(&["sync"]).await;
    }
    assert_eq!(laptop.shown(&["list"]).await, phone.shown(&["list"]).await);
    check(&store, &devices).await;
    stop.cancel();
    serving.await.expect("no panic").expect("served");
}

async fn check(hub: &Store, devices: &[Device]) {
    // What each text is the text of, confirmed or rejected, and how often it was added.
    let mut todos: HashMap<String, String> = HashMap::new();
    let mut added: BTreeMap<String, usize> = BTreeMap::new();
    let mut finished = BTreeSet::new();
    for recorded in hub.load(Version::ZERO).await.expect("loaded") {
        let id = recorded.event.aggregate_id().to_owned();
        match recorded.decode::<TodoEvent>().expect("an event of a to-do") {
            TodoEvent::Added { text } => {
                *added.entry(text.clone()).or_default() += 1;
                todos.insert(text, id);
            }
            TodoEvent::Renamed { text } => _ = todos.insert(text, id),
            TodoEvent::Done => assert!(finished.insert(id), "done twice is done once"),
        }
    }
    let digest = hub.digest().await.expect("read");
    let (mut lists, mut rejected) = (Vec::new(), 0);
    for device in devices {
        let here = open(&device.directory).await;
        let status = here.replica.status().await.expect("read");
        assert_eq!((status.digest, status.pending), (digest, 0), "{}", device.name);
        for batch in here.replica.rejected() {
            rejected += 1;
            let [event] = &batch.events[..] else { panic!("a batch is one event") };
            match event.decode::<TodoEvent>().expect("an event of a to-do") {
                TodoEvent::Renamed { text } => _ = todos.insert(text, event.aggregate_id().to_owned()),
                other => panic!("{other:?} was rejected, which is never wrong: {:?}", batch.status),
            }
        }
        lists.push(here.list().await.expect("read"));
        here.replica.close().await.expect("closed");
    }
    assert_eq!(lists[0], lists[1]);
    for device in devices {
        for text in &device.added {
            assert_eq!(added.get(text), Some(&1), "{text} at the hub");
            let times = lists[0].iter().filter(|item| item.id == todos[text]).count();
            assert_eq!(times, 1, "{text} in the lists");
        }
        for text in &device.done {
            assert!(finished.contains(&todos[text]), "{text} is done");
        }
    }
    assert!(added.values().all(|times| *times == 1), "what was cut off is there once, or not at all");
    let sum = |count: fn(&Device) -> usize| devices.iter().map(count).sum::<usize>();
    let acknowledged = sum(|device| device.added.len());
    let (done, cut) = (sum(|device| device.done.len()), sum(|device| device.cut));
    println!(
        "{acknowledged} added, {} of them known; {done} done; {rejected} rejected; {cut} commands cut off",
        added.len()
    );
    assert!(added.len() >= acknowledged && cut > 0 && done > 0, "the kills came while there was work");
}

async fn open(directory: &Path) -> Todos {
    Todos::open(directory, None).await.expect("opened")
}
