//! `orders [DIRECTORY [ADDRESS]]`

use std::process::ExitCode;

use eventstore::BoxError;
use orders::{App, routes};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    if let Err(error) = serve().await {
        eprintln!("orders: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn serve() -> Result<(), BoxError> {
    let argument = |nth, default: &str| std::env::args().nth(nth).unwrap_or_else(|| default.to_owned());
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (app, running) = App::open(argument(1, "orders-data").as_ref()).await?;
    let listener = TcpListener::bind(argument(2, "127.0.0.1:8080")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let progress = app.progress.clone();
    let until = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = progress.ended() => {} // of another history, say: see the README
        }
    };
    axum::serve(listener, routes::router(app.clone())).with_graceful_shutdown(until).await?;
    running.stop().await?;
    Ok(app.store.close().await?)
}
