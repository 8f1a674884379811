//! A served store and the command that uses it, in separate processes.

#![cfg(all(unix, feature = "lmdb", feature = "serve", feature = "http"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod server;
mod shell;
mod signals;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use base64::Engine as _;
use serde_json::Value;

use server::Server;
use shell::{Done, Shell, orders};

impl Shell {
    /// The command with the server's address as its store.
    fn at(&self, server: &Server, args: &[&str]) -> Done {
        self.run(&[&["--store", server.url.as_str()], args].concat())
    }
}

/// The answer to a request with one line.
fn ask(mut stream: impl Read + Write, path: &str, headers: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn every_command_works_on_a_store_that_is_served() {
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &[]);
    shell.at(&server, &["import", orders().to_str().unwrap()]).succeeded();
    let one = r#"{"id":"one","type":"T","aggregate_id":"a","data":{"n": 1.50}}"#;
    shell.write("one.jsonl", one);
    let appended = shell.at(&server, &["append", "--expect", "none", "one.jsonl"]).succeeded().events();
    let latest = appended[0]["version"].as_u64().unwrap();
    assert_eq!(shell.at(&server, &["latest"]).succeeded().stdout, format!("{latest}\n"));
    assert!(shell.at(&server, &["get", "one"]).succeeded().stdout.contains(r#""data":{"n": 1.50}"#), "byte for byte");
    assert_eq!(shell.at(&server, &["load"]).succeeded().events().len() as u64, latest);
    assert_eq!(shell.at(&server, &["load", "--aggregate", "a", "--backward"]).succeeded().events().len(), 1);
    assert!(shell.at(&server, &["aggregates", "--prefix", "a"]).succeeded().stdout.contains(r#""revision":1"#));
    let stats: Value = serde_json::from_str(&shell.at(&server, &["stats", "--json"]).succeeded().stdout).unwrap();
    assert_eq!((stats["backend"].as_str(), stats["latest_version"].as_u64()), (Some("lmdb"), Some(latest)));
    assert!(shell.at(&server, &["verify"]).succeeded().stdout.contains("verdict: clean"));
    shell.at(&server, &["gc"]).succeeded();
    shell.at(&server, &["backup", "backup"]).succeeded();
    shell.at(&server, &["copy", "--to", "lmdb:./copy"]).succeeded();
    let digest = shell.at(&server, &["digest"]).succeeded().stdout;
    for copy in ["lmdb:./backup", "lmdb:./copy"] {
        assert_eq!(shell.run(&["--store", copy, "digest"]).succeeded().stdout, digest, "{copy}");
    }
    assert_eq!(server.end(15).0, Some(143));
    assert_eq!(shell.run(&["digest"]).succeeded().stdout, digest, "of the directory itself");
}

#[test]
fn a_follower_in_another_process_sees_what_others_append() {
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &[]);
    let mut following = shell.spawn(&["--store", &server.url, "load", "--follow", "--limit", "3"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    for id in ["a", "b", "c"] {
        let event = format!(r#"{{"id":"{id}","type":"T","aggregate_id":"x"}}"#);
        shell.run_with(&["--store", &server.url, "append"], event).succeeded();
        assert!(lines.next().unwrap().unwrap().contains(&format!(r#""id":"{id}""#)));
    }
    assert!(following.wait().unwrap().success());
}

#[test]
fn whoever_follows_is_told_once_that_the_server_is_away_and_once_that_it_is_back() {
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &[]);
    let (url, address) = (server.url.clone(), server.url.trim_start_matches("http://").to_owned());
    let mut following = shell.spawn(&["--store", &url, "load", "--follow", "--limit", "2"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut told = BufReader::new(following.stderr.take().unwrap()).lines();
    let append = |id: &str| {
        let event = format!(r#"{{"id":"{id}","type":"T","aggregate_id":"x"}}"#);
        shell.run_with(&["--store", &url, "append"], event).succeeded();
    };
    append("a");
    assert!(lines.next().unwrap().unwrap().contains(r#""id":"a""#));
    server.kill();
    let away = told.next().unwrap().unwrap();
    assert!(away.starts_with(&url) && away.ends_with("; trying again"), "{away}");
    // The repeated attempts in between are not reported.
    let nobody = std::net::TcpListener::bind(&address).unwrap();
    for _ in 0..5 {
        drop(nobody.accept().unwrap());
    }
    drop(nobody);
    let _server = Server::start(&shell, &["--listen", &address]);
    let back = told.next().unwrap().unwrap();
    assert_eq!(back, format!("{url}: the server answers again"));
    append("b");
    assert!(lines.next().unwrap().unwrap().contains(r#""id":"b""#));
    assert!(following.wait().unwrap().success());
    assert_eq!(told.map_while(Result::ok).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_second_opening_of_a_served_store_says_what_to_do() {
    let shell = Shell::new();
    let _server = Server::on_any_port(&shell, &[]);
    shell.run(&["latest"]).failed("locked", &["open the URL under which it is served"]);
    shell.run(&["serve", "--listen", "127.0.0.1:0"]).failed("locked", &["store"]);
}

#[test]
fn what_was_acknowledged_survives_a_killed_server() {
    let shell = Shell::new();
    let mut acknowledged = 0;
    for _ in 0..10 {
        let server = Server::on_any_port(&shell, &[]);
        let mut appending = shell.spawn(&["--store", &server.url, "append", "--concurrency", "16", "--timeout", "5s"]);
        let mut to = appending.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || {
            let mut number = 0;
            while writeln!(to, r#"{{"type":"T","aggregate_id":"a","id":"{}-{number}"}}"#, std::process::id()).is_ok() {
                number += 1;
            }
        });
        let mut answers = BufReader::new(appending.stdout.take().unwrap()).lines();
        // In the middle of the stream of appends.
        let mut last = 0;
        for answer in answers.by_ref().take(300) {
            let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
            last = last.max(answer["version"].as_u64().unwrap());
        }
        server.kill();
        for answer in answers.map_while(Result::ok) {
            let Ok(answer) = serde_json::from_str::<Value>(&answer) else { break };
            last = last.max(answer["version"].as_u64().unwrap());
        }
        assert!(!appending.wait().unwrap().success(), "the rest has no answer");
        feeder.join().unwrap();
        acknowledged = acknowledged.max(last);
        assert!(shell.run(&["verify"]).succeeded().stdout.contains("verdict: clean"));
        let latest: u64 = shell.run(&["latest"]).succeeded().stdout.trim().parse().unwrap();
        assert!(latest >= acknowledged, "{acknowledged} were acknowledged, {latest} are there");
    }
}

#[test]
fn a_signal_ends_streams_with_a_reason_and_closes_the_store() {
    for (signal, code) in [(2, 130), (15, 143)] {
        let shell = Shell::new();
        let server = Server::on_any_port(&shell, &[]);
        let mut stream = TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap();
        write!(stream, "GET /follow HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        lines.find(|line| line.contains("heartbeat")).expect("it follows");
        let (ended, rest) = server.end(signal);
        assert_eq!((ended, rest.as_str()), (Some(code), ""));
        let end = lines.find(|line| line.contains(r#""end""#)).expect("a reason");
        assert!(end.contains("shutting down"), "{end}");
        shell.run(&["latest"]).succeeded();
    }
}

#[test]
fn a_unix_socket_is_served_to_its_owner() {
    let shell = Shell::new();
    let server = Server::start(&shell, &["--listen", "unix:./store.sock"]);
    let answer = ask(UnixStream::connect(shell.path("store.sock")).unwrap(), "/latest", "");
    assert!(answer.ends_with(r#"{"version":0}"#), "{answer}");
    assert_eq!(shell.at(&server, &["latest"]).succeeded().stdout, "0\n");
    assert_eq!(server.end(15).0, Some(143));
    assert!(!shell.path("store.sock").exists());
}

#[test]
fn beyond_this_machine_it_wants_a_token() {
    let shell = Shell::new();
    let refused = shell.run(&["serve", "--listen", "0.0.0.0:0"]);
    refused.failed("cannot_serve", &["--token-file", "--insecure"]);
    assert!(!shell.path("store").exists(), "nothing was made");
    shell.write("tokens", "reader-0123456789abcdef read *\nwriter-0123456789abcdef write *\n");
    let server = Server::start(&shell, &["--listen", "0.0.0.0:0", "--token-file", "tokens"]);
    let url = format!("http://127.0.0.1:{}", server.port());
    let with = |token: &str, args: &[&str], stdin: &str| {
        let mut command = shell.command(&[&["--store", url.as_str()], args].concat());
        command.env("EVENTSTORE_TOKEN", token).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        Done::of(child)
    };
    let event = r#"{"id":"a","type":"T","aggregate_id":"x"}"#;
    with("wrong-0123456789abcdef", &["latest"], "").failed("forbidden", &["token"]);
    with("reader-0123456789abcdef", &["append"], event).failed("forbidden", &["write"]);
    with("writer-0123456789abcdef", &["append"], event).succeeded();
    assert_eq!(with("reader-0123456789abcdef", &["latest"], "").succeeded().stdout, "1\n");
    let (_, told) = server.end(15);
    assert!(!told.contains("0123456789abcdef"), "{told}");
    shell.write("tokens", "short read *\n");
    shell.run(&["serve", "--token-file", "tokens"]).failed("cannot_serve", &["tokens", "line 1"]);
}

/// Creates a certificate for localhost and its key.
fn issue(shell: &Shell) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = |name: &str, label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        shell.write(name, format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n")));
    };
    pem("cert.pem", "CERTIFICATE", made.cert.der());
    pem("key.pem", "PRIVATE KEY", &made.signing_key.serialize_der());
}

#[test]
fn a_hangup_has_tokens_and_certificates_read_again() {
    let shell = Shell::new();
    let (old, new) = ("old-0123456789abcdef", "new-0123456789abcdef");
    shell.write("tokens", format!("{old} read *\n"));
    issue(&shell);
    let files = ["--token-file", "tokens", "--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    let mut server = Server::on_any_port(&shell, &files);
    let url = format!("https://localhost:{}?ca_file=ca.pem&connect_timeout=5s", server.port());
    let latest = |token: &str| {
        let mut command = shell.command(&["--store", url.as_str(), "latest"]);
        command.env("EVENTSTORE_TOKEN", token).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Done::of(command.spawn().unwrap())
    };
    let hang_up = |server: &mut Server| {
        signals::send(&server.child, libc::SIGHUP);
        [(); 2].map(|()| {
            let mut line = String::new();
            server.stderr.read_line(&mut line).unwrap();
            line
        })
    };
    std::fs::copy(shell.path("cert.pem"), shell.path("ca.pem")).unwrap();
    latest(old).succeeded();
    latest(new).failed("forbidden", &["token"]);

    shell.write("tokens", format!("{new} read *\n"));
    issue(&shell);
    let told = hang_up(&mut server);
    assert!(told[0].contains("read the tokens again") && told[1].contains("read the certificate again"), "{told:?}");
    latest(new).failed("cannot_open", &["ca_file"]);
    std::fs::copy(shell.path("cert.pem"), shell.path("ca.pem")).unwrap();
    latest(new).succeeded();
    latest(old).failed("forbidden", &["token"]);

    // A file that cannot be read changes nothing, and is reported without showing a token.
    shell.write("tokens", format!("{new} reed *\n"));
    std::fs::remove_file(shell.path("key.pem")).unwrap();
    let told = hang_up(&mut server);
    assert!(told[0].contains("the tokens stay as they were") && told[0].contains("line 1"), "{told:?}");
    assert!(told[1].contains("the certificate stays as it was") && told[1].contains("key.pem"), "{told:?}");
    assert!(!told.concat().contains("0123456789abcdef"), "{told:?}");
    latest(new).succeeded();
    assert_eq!(server.end(libc::SIGTERM).0, Some(143));

    // Without such files SIGHUP ends it, like other commands.
    let server = Server::on_any_port(&shell, &[]);
    assert_eq!(server.end(libc::SIGHUP).0, Some(129));
}

#[test]
fn requests_are_logged_on_demand_and_without_secrets() {
    let shell = Shell::new();
    let token = "reader-0123456789abcdef";
    shell.write("tokens", format!("{token} admin *\n"));
    let server = Server::on_any_port(&shell, &["--token-file", "tokens", "--log", "requests"]);
    let address = format!("127.0.0.1:{}", server.port());
    let get = |path: &str, headers: &str| ask(TcpStream::connect(&address).unwrap(), path, headers);
    let authorized = format!("authorization: Bearer {token}\r\n");
    let body = |answer: String| answer.split_once("\r\n\r\n").unwrap().1.len();
    let latest = body(get("/latest?cursor", &authorized));
    let refused = body(get(&format!("/event?id=hidden&token={token}"), ""));
    let page = body(get("/", "accept: text/html\r\n"));
    // One that lasts until the server stops, and one that its client leaves.
    let mut stays = TcpStream::connect(&address).unwrap();
    write!(stays, "GET /follow HTTP/1.1\r\nhost: localhost\r\n{authorized}\r\n").unwrap();
    let mut lines = BufReader::new(stays.try_clone().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.contains("heartbeat")).expect("it follows");
    let (code, told) = server.end(15);
    assert_eq!(code, Some(143));
    assert!(!told.contains("0123456789abcdef") && !told.contains("hidden") && !told.contains("earer"), "{told}");
    let entries: Vec<Vec<&str>> = told.lines().map(|line| line.split(' ').collect()).collect();
    let of = |path: &str| {
        let mut found = entries.iter().filter(|entry| entry[2] == path);
        let entry = found.next().unwrap_or_else(|| panic!("no {path} in {told}"));
        assert!(found.next().is_none(), "{path} once: {told}");
        humantime::parse_rfc3339(entry[0]).expect("a time");
        assert!(entry[4].parse::<f64>().is_ok() && entry[5] == "ms" && entry[7] == "B", "{entry:?}");
        (entry[1], entry[3].parse::<u16>().unwrap(), entry[6].parse::<usize>().unwrap(), entry[8..].join(" "))
    };
    assert_eq!(of("/latest"), ("GET", 200, latest, String::new()));
    assert_eq!(of("/event"), ("GET", 401, refused, String::new()));
    assert_eq!(of("/"), ("GET", 200, page, String::new()));
    let (method, status, bytes, _) = of("/follow");
    assert!((method, status) == ("GET", 200) && bytes > 0, "{told}");
    assert_eq!(entries.len(), 4, "{told}");

    let server = Server::on_any_port(&shell, &[]);
    ask(TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap(), "/latest", "");
    assert_eq!(server.end(15), (Some(143), String::new()), "nothing unless it is asked for");
}

#[test]
fn stores_of_a_directory_are_served_by_name() {
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &["--stores", "tenants"]);
    for name in ["one", "two"] {
        let url = format!("{}/stores/{name}", server.url);
        let event = format!(r#"{{"id":"of-{name}","type":"T","aggregate_id":"x"}}"#);
        shell.run_with(&["--store", &url, "append"], event).succeeded();
        assert!(shell.run(&["--store", &url, "load"]).succeeded().stdout.contains(&format!("of-{name}")));
    }
    for command in ["latest", "append"] {
        shell.run(&["--store", &server.url, command]).failed("cannot_open", &["many stores", "/stores/NAME"]);
    }
    let missing = format!("{}/stores/three", server.url);
    shell.run(&["--store", &missing, "load"]).failed("cannot_open", &["three"]);
    assert_eq!(server.end(15).0, Some(143));
    assert_eq!(shell.run(&["--store", "lmdb:./tenants/two", "latest"]).succeeded().stdout, "1\n");
}

#[test]
fn one_store_and_many_at_once_are_refused() {
    let shell = Shell::new();
    let stores = ["--stores", "tenants", "--listen", "127.0.0.1:0"];
    for args in [&["--store", "lmdb:./x", "serve"][..], &["serve", "--store", "lmdb:./x"]] {
        shell.run(&[args, &stores].concat()).failed("usage", &["--store ", "--stores", "leave one"]);
    }
    // A setting for all commands, such as this environment variable, does not conflict.
    assert!(shell.command(&[]).get_envs().any(|(name, _)| name == "EVENTSTORE_URL"));
    let server = Server::on_any_port(&shell, &["--stores", "tenants"]);
    assert_eq!(server.end(15).0, Some(143));
}

#[test]
fn a_page_a_description_and_metrics_are_there() {
    let shell = Shell::new();
    let server = Server::on_any_port(&shell, &[]);
    let get = |path: &str, headers: &str| {
        ask(TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap(), path, headers)
    };
    assert!(get("/", "accept: text/html\r\n").contains("<!doctype html>"));
    assert!(get("/openapi.json", "").contains(r#""openapi": "3.1.0""#));
    shell.run_with(&["--store", &server.url, "append"], r#"{"type":"T","aggregate_id":"x","id":"a"}"#).succeeded();
    assert!(get("/metrics", "").contains("eventstore_events_written_total{"));
}

#[test]
fn a_server_that_takes_a_connection_and_says_nothing_is_unavailable() {
    let shell = Shell::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}?lost_after=100ms&connect_timeout=2s", listener.local_addr().unwrap());
    shell.run(&["--store", &url, "latest"]).failed("unavailable", &["has not answered"]);
}

#[test]
fn what_is_served_is_not_served_again() {
    let shell = Shell::new();
    shell.run(&["--store", "http://127.0.0.1:1", "serve"]).failed("cannot_serve", &["is served already"]);
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let shell = Shell::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}?retry_for=100ms");
    shell.run(&["--store", &url, "latest"]).failed("unavailable", &[&port.to_string()]);
}
