//! Serves the store's metrics to Prometheus and its logs to the terminal.
//!
//! ```text
//! RUST_LOG=eventstore_kv=debug cargo run --example prometheus -- lmdb:./data 127.0.0.1:9100
//! curl -s http://127.0.0.1:9100/metrics
//! ```
//!
//! It appends an event every second and follows the store until Ctrl-C. `docs/metrics.md` describes each metric.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eventstore::backend::{
    CancellationToken, Context, Error, Event, EventStore, EventStoreExt, Expected, Gc, HISTOGRAM_BUCKETS, Version,
};
use metrics::gauge;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

/// Without buckets the exporter produces quantiles, which cannot be aggregated over stores and processes.
fn with_buckets() -> Result<PrometheusBuilder, BuildError> {
    HISTOGRAM_BUCKETS.iter().try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
    })
}

/// Records the progress of a projection. Its lag is `eventstore_latest_version` minus this version.
async fn follow(store: Arc<dyn EventStore>, ctx: Context) -> eventstore::backend::Result<()> {
    let applied = gauge!("ticks_applied_version");
    let mut events = store.subscribe(&ctx, Version::ZERO);
    while let Some(page) = events.next_page().await {
        match page {
            Ok(page) => page.last().map_or((), |last| applied.set(last.version.get() as f64)),
            Err(Error::Cancelled) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "memory:".to_owned());
    let address: SocketAddr = arguments.next().unwrap_or_else(|| "127.0.0.1:9100".to_owned()).parse()?;

    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    // Must run before the store is opened, which looks up its metrics then.
    with_buckets()?.with_http_listener(address).install()?;

    let store = eventstore::backend::open(&url).await?;
    let stop = CancellationToken::new();
    let ctx = Context::background().with_cancellation(stop.clone());
    tokio::spawn(async move {
        // If Ctrl-C cannot be handled, it ends the process at once.
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    let collecting = tokio::spawn({
        let (store, ctx) = (store.clone(), ctx.clone());
        async move { store.run_gc_every(&ctx, Duration::from_secs(600), Gc::Quick, |_| {}).await }
    });
    let following = tokio::spawn(follow(store.clone(), ctx.clone()));
    while ctx.check().is_ok() {
        let event = Event::builder("Ticked", "clock").build()?;
        store.store(&Context::background(), event, Expected::Any).await?;
        // Returns early when the context ends.
        let _ = ctx.run(tokio::time::sleep(Duration::from_secs(1))).await;
    }
    collecting.await?;
    following.await??;
    store.close().await?;
    Ok(())
}
