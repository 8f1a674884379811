//! What stands between a client and a server in a test: it delays, cuts, stalls and damages.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

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
    to: Mutex<String>,
    /// Of the next connections; those behind pass, or are rough.
    next: Mutex<VecDeque<Fate>>,
    others: Mutex<Fate>,
    connections: Mutex<Vec<Arc<Traffic>>>,
    cut: Mutex<CancellationToken>,
    refuses: AtomicBool,
    refused: AtomicUsize,
    cuts: AtomicUsize,
    stalls: AtomicUsize,
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
        self.cut_all();
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
        *lock(&state.to) = to.to_owned();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut number = 0;
            while let Ok((client, _)) = listener.accept().await {
                number += 1;
                if shared.refuses.load(Ordering::Relaxed) {
                    shared.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let fate = lock(&shared.next).pop_front();
                let fate = match fate.unwrap_or_else(|| *lock(&shared.others)) {
                    Fate::Rough { seed, cuts } => Fate::Rough { seed: seed ^ number, cuts },
                    fate => fate,
                };
                tokio::spawn(connection(shared.clone(), client, fate));
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
        *lock(&self.state.to) = address.to_owned();
    }

    /// The fates of the next connections.
    pub fn next(&self, fates: impl IntoIterator<Item = Fate>) {
        *lock(&self.state.next) = fates.into_iter().collect();
    }

    /// The fate of all others.
    pub fn others(&self, fate: Fate) {
        *lock(&self.state.others) = fate;
    }

    /// Whether connections are closed as soon as they are there.
    pub fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::Relaxed);
    }

    /// How many were closed at once.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.state.refused.load(Ordering::Relaxed)
    }

    /// Cuts all connections.
    pub fn cut_all(&self) {
        std::mem::take(&mut *lock(&self.state.cut)).cancel();
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

async fn connection(state: Arc<State>, client: TcpStream, fate: Fate) {
    let traffic = Arc::new(Traffic::default());
    lock(&state.connections).push(traffic.clone());
    let cut = lock(&state.cut).child_token();
    let to = lock(&state.to).clone();
    let Ok(server) = TcpStream::connect(to).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("set");
        // Some cuts are resets, with which what is on its way is lost.
        if !matches!(fate, Fate::CutRequest(at) | Fate::CutAnswer(at) if at % 2 == 0) {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("set");
        }
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let way = |is_request, count| Way { state: state.clone(), fate, is_request, count, cut: cut.clone() };
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
}

/// Forwards until something ends, or its fate is fulfilled.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way) {
    let Way { state, fate, is_request, count, cut } = way;
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
            if is_request {
                let text = String::from_utf8_lossy(piece);
                let begins = text.starts_with("GET ") || text.starts_with("POST ") || text.starts_with("PUT ");
                let is_long = text.contains("/appends") || text.contains("/backup");
                if begins {
                    reads_only = text.starts_with("GET ") && !is_long;
                }
                if cuts && begins && reads_only && random.u8(..) < 16 {
                    state.cuts.fetch_add(1, Ordering::Relaxed);
                    // Within the request, or within its answer.
                    if random.bool() {
                        let _ = to.write_all(&piece[..random.usize(..piece.len())]).await;
                        cut.cancel();
                        return;
                    }
                    let cut = cut.clone();
                    let pause = Duration::from_micros(random.u64(..1500));
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        cut.cancel();
                    });
                }
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
