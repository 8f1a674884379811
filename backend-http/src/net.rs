//! Connections: TCP, Unix sockets and TLS.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use eventstore_api::{Error, Result, Source};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};

use crate::options::{Address, Place, invalid};

/// Connects to one server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connector(Arc<Inner>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.0.place).finish()
    }
}

struct Inner {
    place: Place,
    tls: Option<TlsConnector>,
    timeout: Duration,
    home: Handle,
}

/// TCP keepalive: the idle time before the first probe, and the time between probes.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

impl Connector {
    /// A connector for this address, whose connections belong to this runtime. It reads the certificates, which blocks.
    pub(crate) fn new(address: &Address, ca_file: Option<&Path>, timeout: Duration, home: Handle) -> Result<Self> {
        let tls = match address.is_tls() {
            true => Some(TlsConnector::from(Arc::new(tls_config(ca_file)?))),
            false => None,
        };
        Ok(Connector(Arc::new(Inner { place: address.place.clone(), tls, timeout, home })))
    }

    /// A new connection. The caller may be in another runtime, which may end before the connection does.
    pub(crate) async fn connect(&self) -> io::Result<Conn> {
        let inner = self.0.clone();
        let connecting = self.0.home.spawn(async move {
            tokio::time::timeout(inner.timeout, inner.connect()).await.unwrap_or_else(|_| {
                let text = format!("connecting took longer than {:?} (connect_timeout)", inner.timeout);
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            })
        });
        connecting.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Inner {
    async fn connect(&self) -> io::Result<Conn> {
        let traffic = Arc::new(Traffic::default());
        let io = match &self.place {
            Place::Host { host, port, .. } => {
                let stream = connect_tcp(host, *port, self.timeout).await?;
                match &self.tls {
                    None => Io::Tcp(Counted { io: stream, traffic: traffic.clone() }),
                    Some(tls) => {
                        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                        let name = ServerName::try_from(host)
                            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
                        let stream = Counted { io: stream, traffic: traffic.clone() };
                        Io::Tls(Box::new(tls.connect(name, stream).await?))
                    }
                }
            }
            #[cfg(unix)]
            Place::Socket(path) => {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Io::Unix(Counted { io: stream, traffic: traffic.clone() })
            }
            #[cfg(not(unix))]
            Place::Socket(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Conn { io, traffic })
    }
}

/// Tries all addresses of the host in order. One that does not answer leaves time for the next.
async fn connect_tcp(host: &str, port: u16, within: Duration) -> io::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    let share = within / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = None;
    for address in addresses {
        let connected = tokio::time::timeout(share, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address")))
}

fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let unusable = |error: &dyn std::fmt::Display| {
                invalid(
                    "ca_file",
                    &format!("{} cannot be used: {error}; give a file with certificates in PEM form", path.display()),
                )
            };
            let text = std::fs::read(path).map_err(|error| unusable(&error))?;
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it has no certificate"));
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            // Some certificates of the system are invalid; the valid ones are used.
            roots.add_parsable_certificates(system.certs);
            if roots.is_empty() {
                let told = system.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
                return Err(invalid(
                    "ca_file",
                    &format!(
                        "the system has no certificates to check a server's with{told}; install them, or name a file with them"
                    ),
                ));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::engine("set up TLS", error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Advice for a TLS error that is permanent.
pub(crate) fn tls_advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => return Some("open the server under a name that its certificate has"),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => return Some("renew the server's certificate, or check this machine's clock"),
            Some(rustls::Error::InvalidCertificate(_)) => {
                return Some("name a file with the right certificates by ca_file=PATH");
            }
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
                return Some(
                    "the server does not speak TLS at this address: open it as http://, or give it a certificate",
                );
            }
            _ => next = error.source(),
        }
    }
    None
}

/// The innermost text of an error, which is the most specific.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// An error with its causes.
pub(crate) fn source(error: impl std::error::Error + Send + Sync + 'static) -> Source {
    Source::from(error)
}

/// The bytes sent and received over a connection.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
}

impl Traffic {
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The bytes that the system has accepted; it may not have sent them.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

/// A connection.
pub(crate) struct Conn {
    io: Io,
    pub(crate) traffic: Arc<Traffic>,
}

enum Io {
    Tcp(Counted<TcpStream>),
    #[cfg(unix)]
    Unix(Counted<tokio::net::UnixStream>),
    Tls(Box<TlsStream<Counted<TcpStream>>>),
}

macro_rules! each {
    ($conn:expr, $io:ident => $work:expr) => {
        match &mut $conn.get_mut().io {
            Io::Tcp($io) => $work,
            #[cfg(unix)]
            Io::Unix($io) => $work,
            Io::Tls($io) => $work,
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            #[cfg(unix)]
            Io::Unix(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}

/// Counts the bytes over a socket.
struct Counted<S> {
    io: S,
    traffic: Arc<Traffic>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.traffic.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = polled {
            self.traffic.written.fetch_add(written as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
