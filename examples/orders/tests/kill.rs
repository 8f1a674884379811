//! The service killed under load, again and again: what it acknowledged stays, and what is repeated is done once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use eventstore::{Store, Version, lmdb};
use orders::domain::{Order, OrderEvent};
use orders::view::View;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

const KILLS: usize = 20;
const CLIENTS: usize = 4;
/// Instalments of one order, then the next one is placed.
const INSTALMENTS: u32 = 25;

/// The service as a process of its own, on a free port of this machine.
struct Process {
    child: Child,
    address: String,
}

impl Process {
    async fn start(directory: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orders"));
        command.arg(directory).arg("127.0.0.1:0").stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines.next_line().await.expect("readable").expect("it says where it listens");
        let address = line.strip_prefix("listening on ").expect("an address").to_owned();
        Process { child, address }
    }

    async fn kill(mut self) {
        self.child.kill().await.expect("SIGKILL, and waited for");
    }

    async fn signal(mut self, signal: libc::c_int) {
        let id = self.child.id().expect("it runs") as libc::pid_t;
        // SAFETY: the child was not waited for yet, so the id is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
        let status = self.child.wait().await.expect("ended");
        assert!(status.success(), "it ends in good order: {status}");
    }
}

/// Where the service is now: which start of it, and its address.
type Place = (usize, String);

/// What somebody was told.
#[derive(Debug)]
struct Acknowledged {
    order: String,
    version: u64,
    event: OrderEvent,
}

struct Client {
    name: String,
    http: reqwest::Client,
    place: watch::Receiver<Place>,
    acknowledged: Vec<Acknowledged>,
    /// Commands whose first answer was lost, and those of them that had been done all the same.
    lost: (usize, usize),
    counter: watch::Sender<usize>,
}

impl Client {
    /// Sends a command until it is answered, always with the same key.
    async fn send(&mut self, order: &str, path: &str, key: &str, body: &Value) -> Value {
        let mut is_lost = false;
        loop {
            let (start, address) = self.place.borrow_and_update().clone();
            let request = self.http.post(format!("{address}/orders/{order}{path}")).header("Idempotency-Key", key);
            let answer = async {
                let answer = request.json(body).send().await?.error_for_status()?;
                answer.json::<Value>().await
            };
            match answer.await {
                Ok(answer) => {
                    self.lost.0 += usize::from(is_lost);
                    self.lost.1 += usize::from(is_lost && answer["repeated"] == true);
                    assert!(is_lost || answer["repeated"] == false, "done before it was sent: {answer}");
                    self.counter.send_modify(|count| *count += 1);
                    return answer;
                }
                Err(error) if error.status().is_none() => {
                    is_lost = true;
                    self.place.wait_for(|place| place.0 > start).await.expect("it is started again");
                }
                // It took too long, on a busy machine.
                Err(error) if error.status() == Some(reqwest::StatusCode::GATEWAY_TIMEOUT) => is_lost = true,
                Err(error) => panic!("a refusal: {error}"),
            }
        }
    }

    async fn run(mut self, stop: watch::Receiver<bool>) -> Self {
        for number in 0.. {
            let order = format!("{}-{number}", self.name);
            let price: u32 = (1..=INSTALMENTS).sum();
            let placed = json!({ "customer": self.name, "cents": price });
            let answer = self.send(&order, "", "place", &placed).await;
            self.note(&order, &answer, OrderEvent::Placed { customer: self.name.clone(), cents: price });
            // Each of another amount: so each can be told from every other.
            for cents in 1..=INSTALMENTS {
                let answer = self.send(&order, "/payments", &format!("pay-{cents}"), &json!({ "cents": cents })).await;
                self.note(&order, &answer, OrderEvent::Paid { cents });
            }
            let answer = self.send(&order, "/shipment", "ship", &json!({ "tracking": order })).await;
            self.note(&order, &answer, OrderEvent::Shipped { tracking: order.clone() });
            if *stop.borrow() {
                break;
            }
        }
        self
    }

    fn note(&mut self, order: &str, answer: &Value, event: OrderEvent) {
        let version = answer["version"].as_u64().expect("a version");
        self.acknowledged.push(Acknowledged { order: order.to_owned(), version, event });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_once_however_often_the_service_is_killed() {
    let test = tokio::time::timeout(Duration::from_secs(100), kills_under_load());
    test.await.expect("it ends within its time");
}

async fn kills_under_load() {
    let directory = tempfile::tempdir().expect("made");
    let mut process = Process::start(directory.path()).await;
    let (place, seen) = watch::channel((0, process.address.clone()));
    let (counter, mut counted) = watch::channel(0_usize);
    let (stop, stopped) = watch::channel(false);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Client {
                name: format!("client-{number}"),
                http: reqwest::Client::builder().no_proxy().build().expect("a client"),
                place: seen.clone(),
                acknowledged: Vec::new(),
                lost: (0, 0),
                counter: counter.clone(),
            };
            tokio::spawn(client.run(stopped.clone()))
        })
        .collect();

    for kill in 1..=KILLS {
        // So many answers later, in the middle of those that come next.
        let until = *counted.borrow_and_update() + 5 + 7 * (kill % 7);
        counted.wait_for(|count| *count >= until).await.expect("clients run");
        process.kill().await;
        process = Process::start(directory.path()).await;
        place.send((kill, process.address.clone())).expect("clients run");
    }
    stop.send(true).expect("clients run");
    let mut acknowledged = Vec::new();
    let (mut lost, mut found) = (0, 0);
    for client in clients {
        let client = client.await.expect("no panic");
        lost += client.lost.0;
        found += client.lost.1;
        acknowledged.extend(client.acknowledged);
    }
    println!("{} commands, {lost} of them sent again, {found} of these had been done", acknowledged.len());
    assert!(lost >= KILLS, "each kill cuts somebody off");
    let newest = acknowledged.iter().map(|acknowledged| acknowledged.version).max().expect("some");
    let view = reqwest::get(format!("{}/orders?after={newest}", process.address)).await.expect("answered");
    assert!(view.status().is_success(), "the view has come up to the events: {view:?}");
    // Both signals end it in good order.
    process.signal(libc::SIGINT).await;
    Process::start(directory.path()).await.signal(libc::SIGTERM).await;

    let store = lmdb::open(lmdb::Options::new(directory.path().join("events"))).await.expect("opened");
    check(&Store::new(store), &View::open(Some(&directory.path().join("view.sqlite"))).expect("opened"), acknowledged)
        .await;
}

async fn check(store: &Store, view: &View, acknowledged: Vec<Acknowledged>) {
    let events = store.load(Version::ZERO).await.expect("loaded");
    assert_eq!(events.len(), acknowledged.len(), "each command led to one event");
    for Acknowledged { order, version, event } in &acknowledged {
        let recorded = &events[usize::try_from(*version - 1).expect("a small number")];
        let found = recorded.decode::<OrderEvent>().expect("an event of an order");
        assert_eq!((recorded.version.get(), recorded.event.aggregate_id(), &found), (*version, order.as_str(), event));
    }

    // The view, against the same made of the events at once.
    let (mut orders, mut customers) = (BTreeMap::new(), BTreeMap::<String, (i64, i64)>::new());
    for recorded in &events {
        let order = recorded.event.aggregate_id().to_owned();
        match recorded.decode::<OrderEvent>().expect("an event of an order") {
            OrderEvent::Placed { customer, .. } => {
                customers.entry(customer.clone()).or_default().0 += 1;
                orders.insert(order, (customer, "open".to_owned()));
            }
            OrderEvent::Paid { cents } => {
                let customer = customers.get_mut(&orders[&order].0).expect("placed before");
                customer.1 += i64::from(cents);
            }
            OrderEvent::Shipped { .. } => "shipped".clone_into(&mut orders.get_mut(&order).expect("placed").1),
            OrderEvent::Cancelled { .. } => panic!("nobody cancels here"),
        }
    }
    let (rows, totals, cursor) = view
        .with(|database| {
            let mut rows = database.prepare("SELECT id, customer, status FROM orders")?;
            let rows = rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
            let rows = rows.collect::<Result<BTreeMap<String, (String, String)>, _>>()?;
            let mut totals = database.prepare("SELECT name, orders, paid FROM customers")?;
            let totals = totals.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
            let totals = totals.collect::<Result<BTreeMap<String, (i64, i64)>, _>>()?;
            let cursor: String = database.query_row("SELECT place FROM cursor", [], |row| row.get(0))?;
            Ok((rows, totals, cursor))
        })
        .await
        .expect("read");
    assert_eq!((rows, totals), (orders.clone(), customers));
    assert_eq!(cursor, store.cursor().await.expect("there").to_string());

    // And the orders as the service sees them, each finished.
    for order in orders.keys() {
        let order = store.aggregate::<Order>(order.as_str()).await.expect("loaded");
        assert_eq!((order.state.due, order.revision.get()), (0, u64::from(INSTALMENTS) + 2));
    }
}
