//! A server on a loopback port, and a proxy in front of it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use eventstore_api::{CancellationToken, Context, Event, EventStore};
use eventstore_kv::{StoreOptions, memory};
use eventstore_server::{Address, ListenError, Listener, Server, serve};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// A test that waits longer than this hangs.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Running {
    /// Such as `http://127.0.0.1:7080`.
    pub(crate) url: String,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ListenError>>,
}

impl Running {
    pub(crate) async fn start(server: Server) -> Self {
        Self::start_at(server, "127.0.0.1:0").await
    }

    pub(crate) async fn start_at(server: Server, address: &str) -> Self {
        let address: Address = address.parse().expect("an address");
        Self::on(server, Listener::bind(&address).await.expect("bound"))
    }

    pub(crate) fn on(server: Server, listener: Listener) -> Self {
        let (url, stop) = (listener.url(), CancellationToken::new());
        let served = serve(server, listener, stop.clone());
        let task = tokio::spawn(served);
        Running { url, stop, task }
    }

    /// Its address without the scheme.
    pub(crate) fn address(&self) -> &str {
        self.url.split_once("//").expect("a host").1
    }

    /// The answer to `GET stats`, including the server's part.
    pub(crate) async fn stats(&self) -> Value {
        let mut stream = TcpStream::connect(self.address()).await.expect("connected");
        let request = format!("GET /stats HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address());
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let body = answer.split_once("\r\n\r\n").expect("a body").1;
        serde_json::from_str(body).expect("JSON")
    }

    /// Stops it, whatever happens to its store: the files may be gone.
    pub(crate) fn abandon(self) {
        self.stop.cancel();
    }

    /// Stops it in an orderly way.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.task)
            .await
            .expect("it ends")
            .expect("no panic")
            .expect("its stores are closed");
    }
}

pub(crate) fn ctx() -> Context {
    Context::background().with_timeout(LONG)
}

pub(crate) fn event(id: &str, aggregate: &str) -> Event {
    Event::builder("T", aggregate).id(id).data("12").build().expect("valid")
}

pub(crate) fn in_memory() -> Arc<dyn EventStore> {
    Arc::new(memory::open(StoreOptions::default()).expect("opened"))
}
