//! Serves the store's metrics to Prometheus and its logs to the terminal.
//!
//! ```text
//! RUST_LOG=eventstore_kv=debug cargo run --example prometheus -- lmdb:./data 127.0.0.1:9100
//! curl -s http://127.0.0.1:9100/metrics
//! ```
//!
//! It appends an event a second until Ctrl-C. `docs/metrics.md` says what each metric is.

use std::net::SocketAddr;
use std::time::Duration;

use eventstore::{CancellationToken, Context, Event, EventStoreExt, Expected, Gc};
use metrics_exporter_prometheus::PrometheusBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "memory:".to_owned());
    let address: SocketAddr = arguments.next().unwrap_or_else(|| "127.0.0.1:9100".to_owned()).parse()?;

    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    // Before the store is opened: it looks its metrics up then.
    PrometheusBuilder::new().with_http_listener(address).install()?;

    let store = eventstore::open(&url).await?;
    let stop = CancellationToken::new();
    let ctx = Context::background().with_cancellation(stop.clone());
    tokio::spawn(async move {
        // If Ctrl-C cannot be listened for, it ends the process at once.
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    let collecting = tokio::spawn({
        let (store, ctx) = (store.clone(), ctx.clone());
        async move { store.run_gc_every(&ctx, Duration::from_secs(600), Gc::Quick, |_| {}).await }
    });
    while ctx.check().is_ok() {
        let event = Event::builder("Ticked", "clock").build()?;
        store.store(&Context::background(), event, Expected::Any).await?;
        // Ends early when the context does.
        let _ = ctx.run(tokio::time::sleep(Duration::from_secs(1))).await;
    }
    collecting.await?;
    store.close().await?;
    Ok(())
}
