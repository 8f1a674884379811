//! What stands between a client and a server in a test: it delays, cuts, stalls and damages.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What becomes of a connection. Numbers are bytes from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    #[default]
    Pass,
    /// So many bytes of the client get through; then the connection is cut.
    CutRequest(u64),
    /// The same of the server.
    CutAnswer(u64),
    /// So many bytes of the client get through; then nothing comes and goes any more.
    StallRequest(u64),
    /// The same of the server, in one direction.
    StallAnswer(u64),
    /// This byte of the server's is another one.
    Damage(u64),
    /// Both directions come in small pieces with pauses between. With `cuts`, some requests that only read are cut, or their answers,
    /// while what appends or works is left alone.
    Rough {
        /// Of everything random.
        seed: u64,
        /// Whether anything is cut.
        cuts: bool,
    },
}

/// What went over a connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes of the client.
    pub requests: AtomicU64,
    /// Bytes of the server.
    pub answers: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Under one lock: a connection is of the rules before a change and cut with them, or it is of the rules behind it.
    rules: Mutex<Rules>,
    connections: Mutex<Vec<Arc<Traffic>>>,
    refused: AtomicUsize,
    cuts: AtomicUsize,
    stalls: AtomicUsize,
}

/// What becomes of new connections.
#[derive(Debug, Default)]
struct Rules {
    to: String,
    /// Of the next connections; those behind pass, or are rough.
    next: VecDeque<Fate>,
    others: Fate,
    refuses: bool,
    running: Running,
}

/// Connections that are cut together.
#[derive(Clone, Debug, Default)]
struct Running {
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Cuts these, and leaves a new set for those to come.
    fn cut(&mut self) -> TaskTracker {
        let Running { cut, tasks } = std::mem::take(self);
        cut.cancel();
        tasks.close();
        tasks
    }
}

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Such as `http://127.0.0.1:7080`.
    pub url: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.state.rules).running.cut();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// One in front of this address.
    ///
    /// # Panics
    ///
    /// If nothing can be listened to.
    pub async fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(State::default());
        to.clone_into(&mut lock(&state.rules).to);
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut number = 0;
            while let Ok((client, _)) = listener.accept().await {
                number += 1;
                let mut rules = lock(&shared.rules);
                if rules.refuses {
                    shared.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let fate = match rules.next.pop_front().unwrap_or(rules.others) {
                    Fate::Rough { seed, cuts } => Fate::Rough { seed: seed ^ number, cuts },
                    fate => fate,
                };
                let cut = rules.running.cut.child_token();
                rules.running.tasks.spawn(connection(shared.clone(), client, rules.to.clone(), fate, cut));
            }
        });
        Proxy { url, state, task }
    }

    /// Where it listens, such as `127.0.0.1:7080`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Connections go there from now on.
    pub fn lead_to(&self, address: &str) {
        address.clone_into(&mut lock(&self.state.rules).to);
    }

    /// The fates of the next connections.
    pub fn next(&self, fates: impl IntoIterator<Item = Fate>) {
        lock(&self.state.rules).next = fates.into_iter().collect();
    }

    /// The fate of all others.
    pub fn others(&self, fate: Fate) {
        lock(&self.state.rules).others = fate;
    }

    /// Whether connections are closed as soon as they are there.
    pub fn refuse(&self, refuses: bool) {
        lock(&self.state.rules).refuses = refuses;
    }

    /// How many were closed at once.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.state.refused.load(Ordering::Relaxed)
    }

    /// Cuts all connections. Nothing goes through them any more when it returns.
    pub async fn cut_all(&self) {
        let tasks = lock(&self.state.rules).running.cut();
        tasks.wait().await;
    }

    /// Cuts all connections, and does not wait: a little may still go through them.
    pub fn cut_soon(&self) {
        lock(&self.state.rules).running.cut();
    }

    /// The connections that there were, in their order.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<Traffic>> {
        lock(&self.state.connections).clone()
    }

    /// How many connections their fate has cut, or a rough way; not those that [`cut_all`](Proxy::cut_all) did.
    #[must_use]
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Relaxed)
    }

    /// How many connections their fate has stalled.
    #[must_use]
    pub fn stalls(&self) -> usize {
        self.state.stalls.load(Ordering::Relaxed)
    }
}

async fn connection(state: Arc<State>, client: TcpStream, to: String, fate: Fate, cut: CancellationToken) {
    let traffic = Arc::new(Traffic::default());
    lock(&state.connections).push(traffic.clone());
    let Ok(server) = TcpStream::connect(to).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("set");
        // Some cuts are resets, with which what is on its way is lost.
        if !matches!(fate, Fate::CutRequest(at) | Fate::CutAnswer(at) if at % 2 == 0) {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("set");
        }
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let answer_cut = Arc::new(AtomicU32::new(0));
    let way = |is_request, count| {
        let (state, cut, answer_cut) = (state.clone(), cut.clone(), answer_cut.clone());
        Way { state, fate, is_request, count, cut, answer_cut }
    };
    let there = pump(from_client, to_server, way(true, traffic.clone()));
    let back = pump(from_server, to_client, way(false, traffic));
    tokio::select! {
        ((), ()) = async { tokio::join!(there, back) } => {}
        () = cut.cancelled() => {}
    }
}

struct Way {
    state: Arc<State>,
    fate: Fate,
    is_request: bool,
    count: Arc<Traffic>,
    cut: CancellationToken,
    /// With a rough way, the piece of the answer within which the connection is cut: 1 for the next one, 0 for none. The
    /// client cannot have begun another request: this answer is incomplete.
    answer_cut: Arc<AtomicU32>,
}

/// Forwards until something ends, or its fate is fulfilled.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way) {
    let Way { state, fate, is_request, count, cut, answer_cut } = way;
    let counter = if is_request { &count.requests } else { &count.answers };
    let limit = match (fate, is_request) {
        (Fate::CutRequest(limit) | Fate::StallRequest(limit), true)
        | (Fate::CutAnswer(limit) | Fate::StallAnswer(limit), false) => limit,
        _ => u64::MAX,
    };
    // Once the client is stalled nothing comes back either.
    let mut random = match fate {
        Fate::Rough { seed, .. } => fastrand::Rng::with_seed(seed.wrapping_add(u64::from(is_request))),
        _ => fastrand::Rng::with_seed(0),
    };
    let mut buffer = vec![0; 16 << 10];
    let mut reads_only = false;
    if limit == 0 {
        return fulfil(fate, &state, &cut).await;
    }
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            cut.cancel();
            return;
        };
        let before = counter.fetch_add(read as u64, Ordering::Relaxed);
        let mut piece = &mut buffer[..read];
        if let Fate::Damage(at) = fate
            && !is_request
            && (before..before + read as u64).contains(&at)
        {
            piece[(at - before) as usize] ^= 0x55;
        }
        if before + read as u64 > limit {
            piece = &mut piece[..(limit - before) as usize];
        }
        if let Fate::Rough { cuts, .. } = fate {
            let is_cut_here = if is_request {
                let text = String::from_utf8_lossy(piece);
                let begins = text.starts_with("GET ") || text.starts_with("POST ") || text.starts_with("PUT ");
                let is_long = text.contains("/appends") || text.contains("/backup");
                if begins {
                    reads_only = text.starts_with("GET ") && !is_long;
                    answer_cut.store(0, Ordering::Relaxed);
                }
                let is_cut = cuts && begins && reads_only && random.u8(..) < 16;
                // Within the request, or within its answer.
                let is_cut_here = is_cut && random.bool();
                if is_cut && !is_cut_here {
                    answer_cut.store(random.u32(1..3), Ordering::Relaxed);
                }
                is_cut_here
            } else {
                answer_cut.load(Ordering::Relaxed) > 0 && answer_cut.fetch_sub(1, Ordering::Relaxed) == 1
            };
            if is_cut_here {
                state.cuts.fetch_add(1, Ordering::Relaxed);
                let _ = to.write_all(&piece[..random.usize(..piece.len())]).await;
                cut.cancel();
                return;
            }
            let first = random.usize(..=piece.len());
            if random.u8(..) < 64 {
                if to.write_all(&piece[..first]).await.is_err() {
                    cut.cancel();
                    return;
                }
                tokio::time::sleep(Duration::from_micros(random.u64(..2000))).await;
                piece = &mut piece[first..];
            }
        }
        if to.write_all(piece).await.is_err() {
            cut.cancel();
            return;
        }
        if before + read as u64 >= limit {
            return fulfil(fate, &state, &cut).await;
        }
    }
}

async fn fulfil(fate: Fate, state: &State, cut: &CancellationToken) {
    match fate {
        Fate::CutRequest(_) | Fate::CutAnswer(_) => {
            state.cuts.fetch_add(1, Ordering::Relaxed);
            cut.cancel();
        }
        // It stays open, and nothing is read any more.
        _ => {
            state.stalls.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }
    }
}
