//! `demo sync`: a guided tour of replicas, in a temporary directory.

use std::fmt::Display;
use std::path::Path;

use eventstore::{Aggregate, CancellationToken, Error, Event, Store, Version};
use serde::{Deserialize, Serialize};
use synckit::{Conflict, DecideAgain, DecideError, Options, Replica, Resolution, SyncOptions, SyncReport};

use super::Ending;
use super::demo::{ended, in_directory};
use crate::failure::Failure;
use crate::output::Output;

/// The engine of the hub and of the replicas: the first one of this build.
const ENGINE: Option<&str> = if cfg!(feature = "lmdb") {
    Some("lmdb")
} else if cfg!(feature = "rocksdb") {
    Some("rocksdb")
} else if cfg!(feature = "fjall") {
    Some("fjall")
} else if cfg!(feature = "sled") {
    Some("sled")
} else {
    None
};

pub(crate) async fn run() -> Result<Ending, Failure> {
    let engine = ENGINE.ok_or_else(|| Error::Unsupported {
        what: "a replica needs an engine, and this program has none; build it with the feature lmdb".to_owned(),
    })?;
    in_directory("In a program: the crate synckit", async |directory, interrupted| {
        let url = format!("{engine}:{}", directory.join("hub").display());
        super::with_store(&url, async |store| {
            let mut tour = Tour::new(interrupted.clone());
            let done = tour.run(engine, directory, Store::from(store.clone())).await;
            // Including what a failure left open.
            for replica in &tour.opened {
                replica.close().await?;
            }
            ended(done)
        })
        .await
    })
    .await
}

/// The events of the goods of the demo's market stall.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum StockEvent {
    Received { pieces: u32 },
    Sold { pieces: u32 },
}

/// The stock of an item.
#[derive(Debug, Default)]
struct Stock {
    left: u32,
}

impl Aggregate for Stock {
    type Event = StockEvent;
    type Error = String;

    fn apply(&mut self, event: StockEvent) {
        match event {
            StockEvent::Received { pieces } => self.left += pieces,
            StockEvent::Sold { pieces } => self.left -= pieces,
        }
    }
}

impl Stock {
    fn receive(&self, pieces: u32) -> Result<Vec<StockEvent>, String> {
        Ok(vec![StockEvent::Received { pieces }])
    }

    /// Only what is in stock can be sold.
    fn sell(&self, pieces: u32) -> Result<Vec<StockEvent>, String> {
        match pieces <= self.left {
            true => Ok(vec![StockEvent::Sold { pieces }]),
            false => Err(format!("{} are left", self.left)),
        }
    }
}

/// Decides again on the current stock. Each batch of the demo is one event.
fn decide_again(stock: &Stock, conflict: &Conflict) -> Resolution {
    let again = conflict.events.iter().try_for_each(|event| match event.decode() {
        Ok(StockEvent::Received { pieces }) => stock.receive(pieces).map(drop),
        Ok(StockEvent::Sold { pieces }) => stock.sell(pieces).map(drop),
        Err(error) => Err(error.to_string()),
    });
    match again {
        Ok(()) => Resolution::AppendAnyway,
        Err(reason) => Resolution::Reject(reason),
    }
}

/// A connection to the hub.
#[cfg(feature = "serve")]
struct Line {
    url: String,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), eventstore_server::ListenError>>,
}

#[cfg(feature = "serve")]
impl Line {
    /// Serves the store on a free port of this machine.
    async fn to(store: Store) -> Result<Self, Failure> {
        use eventstore_server::{Address, Listener, Server, serve};
        let address = Address::Tcp(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = Listener::bind(&address).await.map_err(|error| Failure::refused(error.to_string()))?;
        let (url, stop) = (listener.url(), CancellationToken::new());
        let serving = tokio::spawn(serve(Server::new(store).only_this_machine(), listener, stop.clone()));
        Ok(Line { url, stop, serving })
    }

    /// Another connection to the same store, which can be cut independently.
    async fn beside(&self) -> Result<Self, Failure> {
        Line::to(eventstore::open(&self.url).await?).await
    }

    async fn cut(self) -> Result<(), Failure> {
        self.stop.cancel();
        let served = self.serving.await.map_err(|error| Failure::wrong_result(error.to_string()))?;
        served.map_err(|error| Failure::refused(error.to_string()))
    }

    fn name(&self) -> &str {
        &self.url
    }

    fn hub_of(&self, replica: Options) -> Options {
        replica.hub(&self.url)
    }
}

/// A connection to the hub. In a build without the server, the hub is a store of the same process.
#[cfg(not(feature = "serve"))]
struct Line {
    store: Store,
}

#[cfg(not(feature = "serve"))]
impl Line {
    async fn to(store: Store) -> Result<Self, Failure> {
        Ok(Line { store })
    }

    async fn beside(&self) -> Result<Self, Failure> {
        Line::to(self.store.clone()).await
    }

    async fn cut(self) -> Result<(), Failure> {
        Ok(())
    }

    fn name(&self) -> &str {
        "a store of this process"
    }

    fn hub_of(&self, replica: Options) -> Options {
        replica.hub_store(self.store.clone())
    }
}

/// A write and its place.
struct Write {
    device: &'static str,
    id: String,
    what: String,
}

struct Tour {
    output: Output,
    stop: CancellationToken,
    step: u32,
    writes: Vec<Write>,
    opened: Vec<Replica>,
}

impl Tour {
    fn new(stop: CancellationToken) -> Self {
        Tour { output: Output::of_printing(), stop, step: 0, writes: Vec::new(), opened: Vec::new() }
    }

    async fn run(&mut self, engine: &str, directory: &Path, hub: Store) -> Result<(), Failure> {
        self.output.text("A tour of replicas: a market stall sells with a laptop and a phone, online and offline")?;
        let line = Line::to(hub.clone()).await?;
        let phone_line = line.beside().await?;
        let device = |name: &str, line: &Line| line.hub_of(Options::new(directory.join(name)).engine(engine));

        self.title("A hub, which is a store like any other, and two replicas of it, each in a directory.")?;
        self.result(format!("the hub is {}", line.name()))?;
        self.call("let laptop = synckit::Options::new(\"laptop\").hub(address).open().await?;")?;
        let laptop = self.open(device("laptop", &line)).await?;
        let phone = self.open(device("phone", &phone_line)).await?;

        self.title("The laptop takes in goods, and both sync: what the hub has is confirmed.")?;
        self.call("laptop.decide::<Stock>(\"apples\", |stock| stock.receive(10)).await?")?;
        self.write("laptop", &laptop, "apples", |stock| stock.receive(10)).await?;
        self.write("laptop", &laptop, "pears", |stock| stock.receive(5)).await?;
        self.call("laptop.sync_once(&options).await?; phone.sync_once(&options).await?")?;
        self.sync("laptop", &laptop, &SyncOptions::new()).await?;
        self.sync("phone", &phone, &SyncOptions::new()).await?;

        self.title("The phone goes offline and still sells: a sale is on its disk when the call returns.")?;
        phone_line.cut().await?;
        self.call("phone.decide::<Stock>(\"apples\", |stock| stock.sell(6)).await?")?;
        self.write("phone", &phone, "apples", |stock| stock.sell(6)).await?;
        self.write("phone", &phone, "pears", |stock| stock.sell(3)).await?;
        self.write("phone", &phone, "plums", |stock| stock.receive(7)).await?;
        if cfg!(feature = "serve") {
            self.call("phone.sync_once(&options).await")?;
            match phone.sync_once(&SyncOptions::new()).await {
                Err(error) if error.is_offline() => {
                    self.result("offline: the hub cannot be reached; all three wait")?
                }
                Err(error) => return Err(error.into()),
                Ok(_) => return Err(Failure::wrong_result("a hub is reached that is not there")),
            }
        }

        self.title("The laptop does not know about that. It also sells, and syncs.")?;
        self.write("laptop", &laptop, "apples", |stock| stock.sell(5)).await?;
        self.write("laptop", &laptop, "pears", |stock| stock.sell(2)).await?;
        self.sync("laptop", &laptop, &SyncOptions::new()).await?;

        self.title("The phone is restarted and online again. What it wrote is there, but the sales conflict.")?;
        phone.close().await?;
        let phone_line = line.beside().await?;
        let phone = self.open(device("phone", &phone_line)).await?;
        self.result(format!("pending on the phone: {} batches", phone.pending().len()))?;
        self.call("phone.sync_once(&options).await?; phone.next_conflict().await?")?;
        let report = self.sync("phone", &phone, &SyncOptions::new()).await?;
        let conflict = phone.next_conflict().await?;
        let Some(conflict) = conflict.filter(|conflict| report.waiting == Some(conflict.batch)) else {
            return Err(Failure::wrong_result("two sold the same apples, and nobody noticed"));
        };
        self.result(format!("batch {} waits for a decision: {}", conflict.batch, all(&conflict.events)?))?;
        let unseen: Vec<_> = conflict.unseen.iter().map(|recorded| recorded.event.clone()).collect();
        self.result(format!("what it had not seen: {}", all(&unseen)?))?;

        self.title("Your code resolves conflicts. Here each sale is decided again, on the current stock.")?;
        self.call("phone.sync_once(&SyncOptions::new().resolver(DecideAgain::new(decide_again))).await?")?;
        let seen = phone.status().await?.confirmed;
        self.sync("phone", &phone, &SyncOptions::new().resolver(DecideAgain::new(decide_again))).await?;
        for entry in phone.load().since(seen).await?.entries {
            self.result(format!("still possible: {}; confirmed", words(entry.event())?))?;
        }
        for batch in phone.rejected() {
            let synckit::core::Status::Rejected(reason) = &batch.status else { continue };
            self.result(format!(
                "rejected: {}, because {reason}; it stays readable until it is deleted",
                all(&batch.events)?
            ))?;
        }

        self.title("The laptop syncs. Now all have the same events in the same order: their digests are equal.")?;
        self.sync("laptop", &laptop, &SyncOptions::new()).await?;
        let mut places = vec![("hub", hub.latest_version().await?, hub.digest().await?)];
        for (name, replica) in [("laptop", &laptop), ("phone", &phone)] {
            let status = replica.status().await?;
            places.push((name, status.confirmed, status.digest));
        }
        for (name, version, digest) in &places {
            self.result(format!("{name:<6}  version {version}, digest {digest}"))?;
        }
        if places.iter().any(|(_, version, digest)| (*version, *digest) != (places[0].1, places[0].2)) {
            return Err(Failure::wrong_result("the digests differ"));
        }
        self.account(&hub, &[("laptop", &laptop), ("phone", &phone)]).await?;
        laptop.close().await?;
        phone.close().await?;
        phone_line.cut().await?;
        line.cut().await
    }

    async fn open(&mut self, options: Options) -> Result<Replica, Failure> {
        let replica = options.open().await?;
        self.opened.push(replica.clone());
        Ok(replica)
    }

    /// Decides on a device, and shows the result.
    async fn write(
        &mut self,
        device: &'static str,
        replica: &Replica,
        goods: &str,
        decide: impl Fn(&Stock) -> Result<Vec<StockEvent>, String> + Send,
    ) -> Result<(), Failure> {
        let decided = replica.decide::<Stock>(goods, decide).await;
        let (stock, appended) = decided.map_err(|error| match error {
            DecideError::Replica(error) => error.into(),
            other => Failure::wrong_result(other.to_string()),
        })?;
        let batches = replica.pending();
        let batch = batches.iter().find(|batch| Some(batch.number) == appended.batch);
        let Some(event) = batch.and_then(|batch| batch.events.first()) else {
            return Err(Failure::wrong_result("what was appended is not pending"));
        };
        let what = words(event)?;
        self.result(format!("{device}: {what}, {} left; pending", stock.left))?;
        self.writes.push(Write { device, id: event.id().to_owned(), what });
        Ok(())
    }

    async fn sync(&mut self, device: &str, replica: &Replica, options: &SyncOptions) -> Result<SyncReport, Failure> {
        let report = replica.sync_once(options).await?;
        let status = replica.status().await?;
        self.result(format!(
            "{device}: confirmed up to version {}, {} pending, {} rejected",
            status.confirmed, status.pending, status.rejected
        ))?;
        Ok(report)
    }

    /// Checks that each write is at the hub once, or was rejected where it was made.
    async fn account(&mut self, hub: &Store, devices: &[(&str, &Replica)]) -> Result<(), Failure> {
        let events = hub.load(Version::ZERO).await?;
        let (mut stored, mut rejected) = (0, 0);
        for Write { device, id, what } in &self.writes {
            let times = events.iter().filter(|recorded| recorded.event.id() == id).count();
            let of_device = devices.iter().filter(|(name, _)| name == device);
            let is_rejected = of_device
                .flat_map(|(_, replica)| replica.rejected())
                .any(|batch| batch.events.iter().any(|event| event.id() == id));
            match (times, is_rejected) {
                (1, false) => stored += 1,
                (0, true) => rejected += 1,
                _ => {
                    let fate = format!("{device}: {what} is {times} times at the hub, and rejected: {is_rejected}");
                    return Err(Failure::wrong_result(fate));
                }
            }
        }
        self.result(format!(
            "nothing is lost: of {} writes {stored} are at the hub once, and {rejected} is rejected with a reason",
            self.writes.len()
        ))
    }

    fn title(&mut self, text: &str) -> Result<(), Failure> {
        // Checked between steps: none takes long.
        if self.stop.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        self.step += 1;
        self.output.text(&format!("\n{}. {text}", self.step))
    }

    fn call(&mut self, code: &str) -> Result<(), Failure> {
        self.output.text(&format!("   {code}"))
    }

    /// Shows a result, and flushes: the tour is read while it runs.
    fn result(&mut self, result: impl Display) -> Result<(), Failure> {
        self.output.text(&format!("     -> {result}"))?;
        self.output.flush()
    }
}

/// A description such as `6 apples sold`.
fn words(event: &Event) -> Result<String, Failure> {
    let goods = event.aggregate_id();
    Ok(match event.decode()? {
        StockEvent::Received { pieces } => format!("{pieces} {goods} received"),
        StockEvent::Sold { pieces } => format!("{pieces} {goods} sold"),
    })
}

fn all(events: &[Event]) -> Result<String, Failure> {
    Ok(events.iter().map(words).collect::<Result<Vec<_>, _>>()?.join(", "))
}
