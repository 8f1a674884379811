//! Checks a connection before it is used.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::PgError;

/// Whether the other end is the server itself. A connection pooler hands out its own cancel keys, whose process number
/// differs from that of the server's process.
///
/// This matters for named prepared statements. Their names count from 0 in each process. Behind a pooler that switches
/// servers between transactions, a name may refer to a statement of another process, which writes to another store.
pub(crate) async fn is_direct(client: &Client) -> Result<bool, PgError> {
    let told = match client.simple_query("SELECT pg_backend_pid()").await {
        Err(error) if error.as_db_error().is_some() && !client.is_closed() => return Ok(false), // it has no such function
        told => told?,
    };
    let process = told.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i32>().ok(),
        _ => None,
    });
    let mut written = Vec::new();
    let _ = client.cancel_token().cancel_query_raw(Paper(&mut written), Plain).await; // the request goes nowhere
    // The message ends with: length, code, process, secret.
    let key = written.len().checked_sub(8).and_then(|at| written.get(at..at + 4));
    let is_direct = process.is_some_and(|process| key == Some(process.to_be_bytes().as_slice()));
    if !is_direct {
        tracing::debug!("there is a connection pooler in front of the server, so statements are not prepared by name");
    }
    Ok(is_direct)
}

/// Records what is written, and agrees to TLS.
struct Paper<'a>(&'a mut Vec<u8>);

impl AsyncRead for Paper<'_> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        buffer.put_slice(b"S");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paper<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl TlsStream for Paper<'_> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// A TLS connector without TLS.
struct Plain;

impl<'a> TlsConnect<Paper<'a>> for Plain {
    type Stream = Paper<'a>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Paper<'a>>>;

    fn connect(self, stream: Paper<'a>) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}
