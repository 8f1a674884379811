//! The description is right: each answer matches it, and each resource accepts the described parameters.

mod common;

use common::{Running, event, memory};
use eventstore_server::{Server, Stores};
use serde_json::{Value, json};

struct Description(Value);

impl Description {
    /// Checks a value against the schema of a response.
    #[track_caller]
    fn check(&self, path: &str, method: &str, status: &str, media_type: &str, value: &Value) {
        let responses = &self.0["paths"][path][method]["responses"];
        let response = match &responses[status] {
            Value::Null => &self.0["components"]["responses"]["Problem"],
            response => response,
        };
        let schema = &response["content"][media_type]["schema"];
        assert!(!schema.is_null(), "{method} {path} has no {status} of {media_type}");
        let mut schema = schema.clone();
        // References are resolved from the root.
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let errors: Vec<_> =
            validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path)).collect();
        assert!(errors.is_empty(), "{method} {path}: {errors:?}\n{value}");
    }
}

async fn described() -> (Running, Description) {
    let server = Running::start(Server::new(memory().await).metrics(|| "up 1\n".to_owned())).await;
    let description = Description(server.get("/openapi.json").await.ok());
    let events: Vec<_> = (1..=5).map(|n| event(&format!("e{n}"), "T", "a")).collect();
    let binary = r#"{"id":"b","type":"T","aggregate_id":"a","data_base64":"/wA=","metadata":{"a":1}}"#;
    let appended = server.post("/events", &format!("[{},{binary}]", events.join(","))).await.ok();
    description.check("/events", "post", "200", "application/json", &appended);
    (server, description)
}

#[tokio::test]
async fn answers_are_as_described() {
    let (server, description) = described().await;
    let digest = server.get("/digest").await.ok()["digest"].as_str().expect("text").to_owned();
    for (path, query) in [
        ("/", ""),
        ("/events", ""),
        ("/events", "?limit=2&page_events=1"),
        ("/event", "?id=e1"),
        ("/event", "?id=b"),
        ("/latest", ""),
        ("/latest", "?cursor"),
        ("/revision", "?aggregate=a"),
        ("/aggregates", ""),
        ("/wait", "?after=2"),
        ("/digest", ""),
        ("/stats", ""),
        ("/pull", ""),
        ("/health", ""),
        ("/ready", ""),
        ("/openapi.json", ""),
    ] {
        let answer = server.get(&format!("{path}{query}")).await;
        assert_eq!(answer.status, 200, "{path}{query}");
        description.check(path, "get", "200", "application/json", &answer.json());
    }
    for (method, name, body, status) in [
        ("put", "/", "", 200),
        (
            "post",
            "/push",
            r#"[{"events":[{"type":"T","aggregate_id":"p"}]},{"events":[{"type":"T","aggregate_id":"p"}],"expected":"none"}]"#,
            200,
        ),
    ] {
        let path = if name == "/push" { format!("/push?at=6&digest={digest}") } else { name.to_owned() };
        let headers = [("content-type", "application/json")];
        let answer = server.request(&method.to_uppercase(), &path, &headers, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{answer:?}");
        description.check(name, method, &status.to_string(), "application/json", &answer.json());
    }
    for base in ["/sync", "/sync/replicas/{replica}"] {
        for (method, name, body) in [
            (
                "post",
                "push",
                r#"[{"event":{"id":"e1","type":"T","aggregate_id":"a","data":{"id":"e1"}},"version":"1"}]"#,
            ),
            ("get", "pull", ""),
            ("get", "latest-version", ""),
            ("post", "pull-cursor", r#"{"limit":2}"#),
        ] {
            let name = format!("{base}/{name}");
            let path = name.replace("{replica}", "one");
            let answer = server.request(&method.to_uppercase(), &path, &[], body.as_bytes()).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            description.check(&name, method, "200", "application/json", &answer.json());
        }
    }
    for path in ["/verify", "/gc", "/backup"] {
        let answer = server.request("POST", path, &[], b"").await;
        for line in answer.text().lines() {
            let line = serde_json::from_str(line).expect("JSON");
            description.check(path, "post", "200", "application/x-ndjson", &line);
        }
    }
    let mut stream = server.stream("/follow", &[]).await;
    for _ in 0..7 {
        let line = serde_json::from_str(&stream.next().await.expect("a line")).expect("JSON");
        description.check("/follow", "get", "200", "application/x-ndjson", &line);
    }
    for (method, path) in [
        ("get", "/event?id=none"),
        ("get", "/events?since=x"),
        ("post", "/events"),
        ("get", "/follow?since=1-00000000"),
    ] {
        let answer = server.request(&method.to_uppercase(), path, &[("content-type", "application/json")], b"{").await;
        let name = path.split('?').next().expect("one");
        description.check(name, method, &answer.status.to_string(), "application/problem+json", &answer.json());
    }
    server.stop().await;
}

#[tokio::test]
async fn every_described_parameter_is_taken_and_no_other() {
    let (server, description) = described().await;
    let examples = json!({
        "timeout": "5s", "since": "1", "before": "9", "aggregate": "a", "since_revision": "1", "type": "T",
        "aggregate_prefix": "a", "recorded_since": "2020-01-01T00:00:00Z", "recorded_before": "2020-01-01T00:00:00Z",
        "direction": "forward", "limit": "1", "page_events": "1", "page_bytes": "1", "id": "e1", "cursor": "true",
        "prefix": "a", "after": "0", "until": "1", "expected": "any", "durability": "sync", "idempotency": "id",
        "recorded_at": "now", "full": "true", "at": "0", "digest": "0".repeat(64),
    });
    for (path, methods) in description.0["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let all: Vec<(String, bool)> = operation["parameters"]
                .as_array()
                .expect("parameters")
                .iter()
                .map(|parameter| {
                    let name = parameter["$ref"].as_str().expect("a reference").rsplit('/').next().expect("a name");
                    &description.0["components"]["parameters"][name]
                })
                .filter(|parameter| parameter["in"] == "query")
                .map(|parameter| {
                    (parameter["name"].as_str().expect("a name").to_owned(), parameter["required"] == true)
                })
                .collect();
            // Skip the WebSocket and resources without parameters; Go Sync Kit ignores unknown ones.
            if all.is_empty() || path == "/appends" || operation["tags"][0] == "go-sync-kit" {
                continue;
            }
            for name in all.iter().map(|(name, _)| name.as_str()).chain(["unknown"]) {
                let mut query = format!("{name}={}", examples[name].as_str().unwrap_or("1"));
                for (other, _) in all.iter().filter(|(other, required)| *required && other != name) {
                    query.push_str(&format!("&{other}={}", examples[other].as_str().expect(other)));
                }
                // Make the stream end.
                if path == "/follow" && name != "limit" {
                    query.push_str("&limit=0");
                }
                let headers = [("content-type", "application/json")];
                let answer = server.request(&method.to_uppercase(), &format!("{path}?{query}"), &headers, b"[]").await;
                let is_refused = answer.status == 400 && answer.json()["option"] == name;
                assert_eq!(is_refused, name == "unknown", "{method} {path}?{query}: {answer:?}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_server_of_many_describes_its_own_resources() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::new(directory.path()).engine("memory");
    let server = Running::start(Server::of_many(stores).metrics(|| "up 1\n".to_owned())).await;
    let description = Description(server.get("/openapi.json").await.ok());
    let created = server.request("PUT", "/stores/one", &[], b"").await;
    description.check("/stores/{store}", "put", "201", "application/json", &created.json());
    for path in ["/", "/stores", "/stores/{store}", "/stores/{store}/stats", "/stores/{store}/events", "/health"] {
        let answer = server.get(&path.replace("{store}", "one")).await;
        assert_eq!(answer.status, 200, "{path}");
        description.check(path, "get", "200", "application/json", &answer.json());
    }
    let paths = description.0["paths"].as_object().expect("paths");
    let of_one: Value = serde_json::from_str(include_str!("../src/openapi.json")).expect("JSON");
    assert_eq!(paths.len(), of_one["paths"].as_object().expect("paths").len() + 2);
    for (path, resource) in paths {
        let names_a_store = resource["parameters"][0]["$ref"] == "#/components/parameters/store";
        assert_eq!(names_a_store, path.contains("{store}"), "{path}");
        // A request without its parameters may fail, but not because the resource does not exist.
        let (path, method) = (path.replace("{store}", "one"), resource.as_object().expect("methods"));
        let method = method.keys().find(|name| *name != "parameters").expect("a method").to_uppercase();
        let is_stream = ["/follow", "/wait", "/sse"].iter().any(|end| path.ends_with(end));
        if !is_stream {
            let answer = server.request(&method, &path, &[], b"").await;
            assert!(answer.status != 404 && answer.status != 405, "{method} {path}: {answer:?}");
        }
    }
    for id in ["a", "one", "a-b_c.d"] {
        let pattern = &description.0["components"]["parameters"]["store"]["schema"];
        assert!(jsonschema::is_valid(pattern, &json!(id)), "{id}");
    }
    server.stop().await;
}
