//! A server on a loopback port, and a client that speaks plain HTTP to it.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::time::Duration;

use eventstore_server::{Address, Listener, Server, serve};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A test that waits longer than this hangs.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Running {
    pub(crate) address: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(server: Server) -> Self {
        Self::start_at(server, "127.0.0.1:0").await
    }

    pub(crate) async fn start_at(server: Server, address: &str) -> Self {
        let address: Address = address.parse().expect("an address");
        let listener = Listener::bind(&address).await.expect("bound");
        let address = listener.url().trim_start_matches("http://").to_owned();
        let stop = CancellationToken::new();
        let served = serve(server, listener, stop.clone());
        let task = tokio::spawn(async move { served.await.expect("served to the end") });
        Running { address, stop, task }
    }

    /// Stops it, and waits until it has stopped.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.task).await.expect("it ends").expect("no panic");
    }

    pub(crate) fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Response {
        self.request("POST", path, &[("content-type", "application/json")], body.as_bytes()).await
    }

    /// Sends a request, again if the machine is so slow that the server gives its store up.
    pub(crate) async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let is_given_up = |answer: &Response| answer.status == 503 && answer.text().contains("has not answered within");
        let asking = async {
            loop {
                match self.request_once(method, path, headers, body).await {
                    answer if is_given_up(&answer) => {}
                    answer => break answer,
                }
            }
        };
        tokio::time::timeout(LONG, asking).await.expect("the store answers")
    }

    pub(crate) async fn request_once(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let mut stream = TcpStream::connect(&self.address).await.expect("connected");
        stream.write_all(&self.head(method, path, headers, body.len())).await.expect("written");
        // A server that refuses a body need not read it.
        let _ = stream.write_all(body).await;
        Response::read(stream).await
    }

    pub(crate) fn head(&self, method: &str, path: &str, headers: &[(&str, &str)], len: usize) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {len}\r\n");
        if headers.iter().all(|(name, _)| *name != "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// Sends a request and returns its answer for reading as it arrives.
    pub(crate) async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Lines {
        let mut stream = TcpStream::connect(&self.address).await.expect("connected");
        stream.write_all(&self.head("GET", path, headers, 0)).await.expect("written");
        let mut lines = Lines { stream, text: String::new(), is_chunked: false };
        let head = lines.until("\r\n\r\n").await.expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        lines.is_chunked = head.contains("chunked");
        lines
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    async fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("answered");
        if bytes.is_empty() {
            read.expect("an answer");
        }
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_lowercase();
        let mut body = bytes[end + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = dechunked(&body);
        }
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        Response { status, head, body }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value of a header; empty if it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(other, _)| *other == name).map(|(_, value)| value).next().unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The code of the problem in the answer.
    #[track_caller]
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        problem["code"].as_str().expect("a code").to_owned()
    }
}

fn dechunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).expect("a number"), 16).expect("a number");
        if len == 0 {
            break;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + len]);
        bytes = &bytes[end + 4 + len..];
    }
    body
}

/// An answer that is still arriving.
pub(crate) struct Lines {
    stream: TcpStream,
    text: String,
    is_chunked: bool,
}

impl Lines {
    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = self.text.find(end) {
                let rest = self.text.split_off(at + end.len());
                let mut line = std::mem::replace(&mut self.text, rest);
                line.truncate(at);
                return Some(line);
            }
            let mut bytes = vec![0; 64 << 10];
            let len = tokio::time::timeout(LONG, self.stream.read(&mut bytes)).await.expect("more comes").unwrap_or(0);
            if len == 0 {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&bytes[..len]).expect("text"));
        }
    }

    /// The next line that is neither a chunk length nor empty; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            let line = self.until("\n").await?;
            let line = line.trim_end_matches('\r');
            let is_length = self.is_chunked && usize::from_str_radix(line, 16).is_ok();
            if !line.is_empty() && !is_length {
                return Some(line.to_owned());
            }
        }
    }

    /// The next line with an event, as JSON, skipping heartbeats.
    pub(crate) async fn event(&mut self) -> Value {
        loop {
            let line = self.next().await.expect("one more line");
            let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if value.get("heartbeat").is_none() {
                return value;
            }
        }
    }
}

/// An event as JSON.
pub(crate) fn event(id: &str, event_type: &str, aggregate_id: &str) -> String {
    serde_json::json!({ "id": id, "type": event_type, "aggregate_id": aggregate_id, "data": { "id": id } }).to_string()
}

pub(crate) async fn memory() -> eventstore::Store {
    eventstore::open("memory:").await.expect("opened")
}

/// Sends a request over a given connection.
pub(crate) async fn plain(mut stream: TcpStream, path: &str, accept: &str) -> Response {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("written");
    Response::read(stream).await
}

/// The answer to a request that was already sent.
pub(crate) async fn answer(stream: TcpStream) -> Response {
    Response::read(stream).await
}

/// The first bytes of an answer, over a connection that may stay open.
pub(crate) async fn answer_of_one(mut stream: TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let len = tokio::time::timeout(LONG, stream.read(&mut bytes)).await.expect("answered").expect("read");
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}
