//! The service over its router, without a socket, in memory.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use eventstore::testing::{Fault, Faults, faulty};
use eventstore::{Cursor, Event, MemorySnapshots, Projection, Running, Store, Version};
use http_body_util::BodyExt;
use orders::domain::OrderEvent;
use orders::view::View;
use orders::{App, routes};
use serde_json::{Value, json};
use tower::ServiceExt;

struct Service {
    app: App,
    faults: Faults,
    running: Running<View>,
}

async fn memory() -> Store {
    eventstore::open("memory:").await.expect("opened")
}

impl Service {
    async fn new() -> Self {
        Service::on(memory().await, View::open(None).expect("opened"))
    }

    fn on(store: Store, view: View) -> Self {
        let (store, faults) = faulty(store);
        let (app, running) = App::start(store, MemorySnapshots::default(), view);
        Service { app, faults, running }
    }

    async fn ask(&self, request: Request<Body>) -> (StatusCode, String, Value) {
        let answer = routes::router(self.app.clone()).oneshot(request).await.expect("a router answers always");
        let status = answer.status();
        let kind = answer.headers()[header::CONTENT_TYPE].to_str().expect("text").to_owned();
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        (status, kind, serde_json::from_slice(&body).expect("JSON"))
    }

    /// Status and body of a command.
    async fn post(&self, path: &str, key: &str, body: Value) -> (u16, Value) {
        let request = Request::post(path).header("Idempotency-Key", key).header("Content-Type", "application/json");
        let (status, _, answer) = self.ask(request.body(Body::from(body.to_string())).expect("valid")).await;
        (status.as_u16(), answer)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, answer) = self.ask(Request::get(path).body(Body::empty()).expect("valid")).await;
        (status.as_u16(), answer)
    }

    async fn events(&self) -> u64 {
        self.app.store.latest_version().await.expect("read").get()
    }
}

#[tokio::test]
async fn an_order_goes_its_way() {
    let service = Service::new().await;
    let (status, placed) = service.post("/orders/o-1", "k1", json!({ "customer": "Ada", "cents": 1200 })).await;
    assert_eq!((status, &placed["version"], &placed["order"]["status"]), (201, &json!(1), &json!("placed")));
    let (status, early) = service.post("/orders/o-1/shipment", "k2", json!({ "tracking": "T-1" })).await;
    assert_eq!((status, &early["code"], &early["written"]), (409, &json!("not_paid"), &json!("nothing")));
    assert_eq!(service.post("/orders/o-1/payments", "k3", json!({ "cents": 200 })).await.0, 200);
    assert_eq!(service.post("/orders/o-1/payments", "k4", json!({ "cents": 1000 })).await.0, 200);
    // The command that was refused is decided anew.
    let (status, shipped) = service.post("/orders/o-1/shipment", "k2", json!({ "tracking": "T-1" })).await;
    assert_eq!((status, &shipped["order"]["status"]), (200, &json!("shipped")));
    let (status, order) = service.get("/orders/o-1").await;
    assert_eq!((status, &order["order"]["due"], &order["version"]), (200, &json!(0), &json!(4)));
    let (status, late) = service.post("/orders/o-1/cancellation", "k5", json!({ "reason": "too late" })).await;
    assert_eq!((status, &late["code"]), (409, &json!("already_shipped")));
}

#[tokio::test]
async fn what_was_written_can_be_read_in_the_view() {
    let service = Service::new().await;
    service.post("/orders/o-1", "k1", json!({ "customer": "Ada", "cents": 10 })).await;
    service.post("/orders/o-2", "k1", json!({ "customer": "Ada", "cents": 10 })).await;
    let (_, cancelled) = service.post("/orders/o-2/cancellation", "k2", json!({ "reason": "twice" })).await;
    let (_, paid) = service.post("/orders/o-1/payments", "k2", json!({ "cents": 4 })).await;
    let after = |answer: &Value| answer["version"].as_u64().expect("a version");
    let (status, customer) = service.get(&format!("/customers/Ada?after={}", after(&paid))).await;
    assert_eq!((status, customer), (200, json!({ "orders": 2, "paid_cents": 4 })));
    let (_, orders) = service.get(&format!("/orders?status=cancelled&after={}", after(&cancelled))).await;
    assert_eq!(orders, json!([{ "id": "o-2", "customer": "Ada", "status": "cancelled" }]));
    assert_eq!(service.get("/orders").await.1.as_array().map(Vec::len), Some(2));
    assert_eq!(service.get("/customers/Grace").await.0, 404);
}

#[tokio::test]
async fn a_command_is_done_once_however_often_it_is_sent() {
    let service = Service::new().await;
    service.post("/orders/o-1", "k1", json!({ "customer": "Ada", "cents": 10 })).await;
    let (_, first) = service.post("/orders/o-1/payments", "k2", json!({ "cents": 4 })).await;
    service.post("/orders/o-1/payments", "k3", json!({ "cents": 5 })).await;
    let (status, again) = service.post("/orders/o-1/payments", "k2", json!({ "cents": 4 })).await;
    assert_eq!((status, &again["version"], &again["repeated"]), (200, &first["version"], &json!(true)));
    assert_eq!((&first["repeated"], service.events().await), (&json!(false), 3));
    // The same key for something else is a mistake of the sender, who must not take it for done.
    for (path, body) in [("payments", json!({ "cents": 1 })), ("cancellation", json!({ "reason": "no" }))] {
        let (status, reused) = service.post(&format!("/orders/o-1/{path}"), "k2", body).await;
        assert_eq!((status, &reused["code"], &reused["written"]), (422, &json!("key_reused"), &json!("nothing")));
    }
    assert_eq!(service.events().await, 3);
}

#[tokio::test]
async fn every_error_is_a_problem_with_its_code() {
    let service = Service::new().await;
    service.post("/orders/o-1", "k1", json!({ "customer": "Ada", "cents": 10 })).await;
    let post = |path: &str, key: Option<&str>, body: &str| {
        let request = Request::post(path).header("Content-Type", "application/json");
        let request = key.into_iter().fold(request, |request, key| request.header("Idempotency-Key", key));
        request.body(Body::from(body.to_owned())).expect("valid")
    };
    let long = format!("/orders/{}", "x".repeat(5_000));
    let cases = [
        (post("/orders/o-2", None, "{}"), 400, "key_missing"),
        (post("/orders/o-2", Some(""), "{}"), 400, "key_missing"),
        (post("/orders/o-2", Some("k"), "{"), 400, "invalid_body"),
        (post("/orders/o-2", Some("k"), r#"{"customer":"Ada","cents":-1}"#), 422, "invalid_body"),
        (post("/orders/o-2", Some("k"), r#"{"customer":"Ada","cents":0}"#), 422, "empty_order"),
        (post(&long, Some("k"), r#"{"customer":"Ada","cents":1}"#), 422, "invalid_event"),
        (post("/orders/o-2/payments", Some("k"), r#"{"cents":1}"#), 404, "unknown_order"),
        (post("/orders/o-1/payments", Some("k"), r#"{"cents":11}"#), 409, "wrong_amount"),
        (Request::get("/orders/o-2").body(Body::empty()).expect("valid"), 404, "unknown_order"),
        (Request::get("/orders?after=x").body(Body::empty()).expect("valid"), 400, "invalid_query"),
    ];
    for (request, status, code) in cases {
        let asked = request.uri().to_string();
        let (answered, kind, problem) = service.ask(request).await;
        let told = (answered.as_u16(), kind.as_str(), &problem["code"], &problem["status"]);
        assert_eq!(told, (status, "application/problem+json", &json!(code), &json!(status)), "{asked}: {problem}");
        assert_eq!(problem["written"], "nothing");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
    }
    assert_eq!(service.events().await, 1);
}

#[tokio::test]
async fn an_unknown_outcome_is_told_and_the_same_request_finds_out() {
    let service = Service::new().await;
    let place = || service.post("/orders/o-1", "k1", json!({ "customer": "Ada", "cents": 10 }));
    service.faults.next_append(Fault::LoseAnswer);
    service.faults.next_append(Fault::TimeOut);
    let (status, unknown) = place().await;
    assert_eq!((status, &unknown["code"], &unknown["written"]), (504, &json!("outcome_unknown"), &json!("unknown")));
    let (status, placed) = place().await;
    assert_eq!((status, &placed["repeated"], service.events().await), (201, &json!(true), 1));
    // What is known to have written nothing says so.
    service.faults.next_append(Fault::TimeOut);
    let (status, late) = service.post("/orders/o-1/payments", "k2", json!({ "cents": 10 })).await;
    assert_eq!((status, &late["code"], &late["written"]), (504, &json!("deadline_exceeded"), &json!("nothing")));
    service.faults.fence("a sync failed");
    let (status, fenced) = service.post("/orders/o-1/payments", "k2", json!({ "cents": 10 })).await;
    assert_eq!((status, &fenced["code"], &fenced["written"]), (503, &json!("fenced"), &json!("nothing")));
}

#[tokio::test]
async fn a_view_goes_on_where_it_ended_and_notices_another_history() {
    let (store, view) = (memory().await, View::open(None).expect("opened"));
    let service = Service::on(store.clone(), view.clone());
    service.post("/orders/o-1", "k1", json!({ "customer": "Ada", "cents": 10 })).await;
    service.post("/orders/o-1/payments", "k2", json!({ "cents": 1 })).await;
    assert_eq!(service.get("/customers/Ada?after=2").await.1["paid_cents"], 1);
    service.running.stop().await.expect("stopped");

    store.append(Event::of("o-1", &OrderEvent::Paid { cents: 2 }).expect("valid")).await.expect("appended");
    let service = Service::on(store, view.clone());
    assert_eq!(service.get("/customers/Ada?after=3").await.1, json!({ "orders": 1, "paid_cents": 3 }));
    service.running.stop().await.expect("stopped");

    // As after a backup was restored that ends before, and other events came.
    let service = Service::on(memory().await, view);
    let (status, problem) = service.get("/customers/Ada?after=4").await;
    assert_eq!((status, &problem["code"]), (500, &json!("history_diverged")));
    let error = service.running.stop().await.expect_err("it has ended");
    assert_eq!(error.code(), "history_diverged");
}

#[tokio::test]
async fn rows_and_cursor_change_together_or_not_at_all() {
    let store = memory().await;
    let placed = OrderEvent::Placed { customer: "Ada".into(), cents: 10 };
    let events =
        [Event::of("o-1", &placed).expect("valid"), Event::of("o-1", &OrderEvent::Paid { cents: 4 }).expect("valid")];
    let last = store.append(events).await.expect("appended").last;
    let (events, cursor) =
        (store.load(Version::ZERO).await.expect("loaded"), store.cursor_at(last).await.expect("there"));
    for missing in ["orders", "customers", "cursor"] {
        let mut view = View::open(None).expect("opened");
        let run = |sql: String| view.with(move |database| Ok(database.execute_batch(&sql)?));
        run(format!("ALTER TABLE {missing} RENAME TO away")).await.expect("renamed");
        view.clone().apply(&events, cursor).await.expect_err("a table is missing");
        run(format!("ALTER TABLE away RENAME TO {missing}")).await.expect("renamed");
        let count = "SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM customers)";
        let rows = view.with(move |database| Ok(database.query_row(count, [], |row| row.get::<_, i64>(0))?));
        assert_eq!(rows.await.expect("read"), 0, "without {missing}");
        assert_eq!(view.cursor().await.expect("read"), Cursor::START, "without {missing}");
        view.apply(&events, cursor).await.expect("all tables are there");
        assert_eq!(view.cursor().await.expect("read"), cursor);
    }
}
