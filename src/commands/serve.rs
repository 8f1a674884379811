//! `serve`: serves a store, or a directory of stores, over HTTP, until a signal.

use std::path::PathBuf;
use std::time::Duration;

use eventstore::backend::HISTOGRAM_BUCKETS;
use eventstore_server::{Address, Listener, Server, Stores, Tls, Tokens, serve};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::Ending;
use crate::cli::ServeArgs;
use crate::failure::{Failure, tell};
use crate::interrupt;
use crate::request_log::Log;

pub(crate) async fn run(url: &str, args: ServeArgs) -> Result<Ending, Failure> {
    let stop = interrupt::token_of_work();
    if args.stores.is_none() && eventstore::backend::is_served(url) {
        return Err(Failure::refused(format!(
            "{url} is served already; name a store by its directory, such as lmdb:./data"
        )));
    }
    let is_open_to_all = args.token_file.is_none();
    if is_open_to_all && !args.listen.is_local() && !args.insecure {
        return Err(Failure::refused(format!(
            "{} can be reached from other machines, and there is no token; give --token-file FILE, or --insecure to let everybody \
             read and write",
            args.listen
        )));
    }
    let files = Files { tokens: args.token_file.clone(), tls: args.tls_cert.clone().zip(args.tls_key.clone()) };
    let (tokens, tls) = (files.tokens().map_err(Failure::refused)?, files.tls().map_err(Failure::refused)?);
    files.read_on_hangup(tokens.clone(), tls.clone())?;
    let metrics = record_metrics()?;
    // Before a store is opened, so that a wrong address is noticed early.
    let mut listener = Listener::bind(&args.listen).await.map_err(|error| Failure::refused(error.to_string()))?;
    if let Some(tls) = tls {
        listener = listener.tls(tls);
    }
    let what;
    let mut server = match &args.stores {
        Some(place) => {
            let (engine, directory, options) = split_place(place);
            what = format!("the stores in {directory}");
            let stores = Stores::new(directory)
                .engine(engine)
                .options(options)
                .most_open(args.most_open)
                .read_only(args.read_only)
                .idle(args.close_idle);
            Server::of_many(stores)
        }
        None => {
            what = url.to_owned();
            let opening = async {
                match args.read_only {
                    true => eventstore::open_read_only(url).await,
                    false => eventstore::open(url).await,
                }
            };
            let Some(store) = interrupt::while_opening(opening).await else { return Ok(Ending::Interrupted) };
            Server::new(store?)
        }
    };
    server = server.read_only(args.read_only).metrics(move || metrics.render());
    server = match tokens {
        Some(tokens) => server.tokens(tokens),
        None if args.listen.is_local() && matches!(args.listen, Address::Tcp(_)) => server.only_this_machine(),
        None => server,
    };
    let log = args.log.map(Log::begin);
    tell(&format!("serving {what} at {}; stop with Ctrl-C", listener.url()));
    let served = serve(server, listener, stop).await;
    if let Some(log) = log {
        log.end();
    }
    served.map_err(|error| Failure::refused(error.to_string()))?;
    Ok(Ending::Interrupted)
}

/// The files that are read at the start, and again on SIGHUP.
struct Files {
    tokens: Option<PathBuf>,
    /// The certificate and its key.
    tls: Option<(PathBuf, PathBuf)>,
}

impl Files {
    fn tokens(&self) -> Result<Option<Tokens>, String> {
        self.tokens.as_deref().map(Tokens::from_file).transpose()
    }

    fn tls(&self) -> Result<Option<Tls>, String> {
        let read = |(certificate, key): &(PathBuf, PathBuf)| Tls::from_files(certificate, key);
        self.tls.as_ref().map(read).transpose().map_err(|error| error.to_string())
    }

    /// Without files to read, SIGHUP ends the command as usual.
    #[cfg(unix)]
    fn read_on_hangup(self, tokens: Option<Tokens>, tls: Option<Tls>) -> Result<(), Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        if tokens.is_none() && tls.is_none() {
            return Ok(());
        }
        let mut hangups = signal(SignalKind::hangup()).map_err(|error| Failure::io("listen for signals", &error))?;
        interrupt::keep_on_hangup();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                self.read_again(tokens.as_ref(), tls.as_ref());
            }
        });
        Ok(())
    }

    #[cfg(not(unix))]
    fn read_on_hangup(self, _: Option<Tokens>, _: Option<Tls>) -> Result<(), Failure> {
        Ok(())
    }

    /// Files that cannot be read leave the current state unchanged.
    #[cfg(unix)]
    fn read_again(&self, tokens: Option<&Tokens>, tls: Option<&Tls>) {
        match (tokens, self.tokens()) {
            (Some(tokens), Ok(Some(new))) => {
                tokens.replace(new);
                tell("read the tokens again");
            }
            (_, Err(reason)) => tell(&format!("the tokens stay as they were: {reason}")),
            _ => {}
        }
        match (tls, self.tls()) {
            (Some(tls), Ok(Some(new))) => {
                tls.replace(new);
                tell("read the certificate again");
            }
            (_, Err(reason)) => tell(&format!("the certificate stays as it was: {reason}")),
            _ => {}
        }
    }
}

/// The parts of `DIR` or `ENGINE:DIR?options` for a store's URL.
fn split_place(place: &str) -> (&str, &str, &str) {
    let (place, options) = place.split_once('?').unwrap_or((place, ""));
    match place.split_once(':') {
        Some((engine, directory)) if engine.bytes().all(|byte| byte.is_ascii_lowercase()) => {
            (engine, directory, options)
        }
        _ => ("lmdb", place, options),
    }
}

/// Starts collecting the metrics of the stores.
fn record_metrics() -> Result<PrometheusHandle, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::refused(format!("cannot collect metrics: {error}"));
    let with_buckets = HISTOGRAM_BUCKETS.iter().try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
    });
    let recorder = with_buckets.map_err(|error| failed(&error))?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| failed(&error))?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_stores_may_name_an_engine() {
        assert_eq!(split_place("./tenants"), ("lmdb", "./tenants", ""));
        assert_eq!(split_place("/a/b:c"), ("lmdb", "/a/b:c", ""));
        assert_eq!(split_place("fjall:./tenants?compression=zstd"), ("fjall", "./tenants", "compression=zstd"));
    }
}
