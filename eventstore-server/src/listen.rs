//! Connections: accepting them, limiting their cost, and closing them.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, RwLock};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use axum::Router;
use eventstore_wire::{PROBLEM, Problem};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::{Server, backup};

/// A connection is closed if the client reads nothing for this time.
const WRITE: Duration = Duration::from_secs(60);

/// The most concurrent connections. Further ones wait to be accepted.
const MOST_CONNECTIONS: usize = 25_000;

/// The most concurrent requests over one HTTP/2 connection.
const MOST_STREAMS: u32 = 200;

/// A client that has closed its sending side counts as gone when nothing was sent to it for this time: until then it
/// may be waiting for its answer.
const HALF_CLOSED: Duration = Duration::from_secs(2);

/// The time that a refused client has to close the connection.
const GOODBYE: Duration = Duration::from_secs(2);

/// The time that a stopping server waits for its connections.
const GRACE: Duration = Duration::from_secs(15);

/// The address of a server: `127.0.0.1:7080`, `[::1]:7080`, `localhost:7080`, which means the first of these, or
/// `unix:` and the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address. Port 0 means any free port.
    Tcp(SocketAddr),
    /// A Unix socket, which is created with mode 0600 and removed at the end.
    Unix(PathBuf),
}

impl Address {
    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("a Unix socket needs a path, such as unix:/run/app/store.sock".to_owned()),
                path => Ok(Address::Unix(path.into())),
            };
        }
        // The only host name that is accepted, because it means the same everywhere.
        let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
        let address = port.map_or_else(|| text.parse(), |port| Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        address.map(Address::Tcp).map_err(|_| {
            format!(
                "{text:?} is no address; write localhost:7080, 0.0.0.0:7080, [::1]:7080, another IP address with a port, or \
                 unix:/run/app/store.sock"
            )
        })
    }
}

/// Why a server cannot listen, or stopped: a message for people, and its cause.
#[derive(Debug)]
pub struct ListenError {
    what: String,
    source: Option<io::Error>,
}

impl ListenError {
    fn new(what: impl Into<String>, source: io::Error) -> Self {
        ListenError { what: what.into(), source: Some(source) }
    }

    fn told(what: impl Into<String>) -> Self {
        ListenError { what: what.into(), source: None }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| -> &(dyn std::error::Error + 'static) { source })
    }
}

/// A certificate and its key, for `https`.
///
/// Clones share it: [`replace`](Tls::replace) changes it for a running server.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads PEM files: the chain of certificates, the server's own first, and its private key.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, has no certificate or key, or the key does not belong to the certificate.
    pub fn from_files(certificates: &Path, key: &Path) -> Result<Self, ListenError> {
        let unusable = |what: &str, path: &Path, error: pem::Error| {
            let path = path.display();
            ListenError::told(match error {
                pem::Error::Io(error) => {
                    format!("cannot read the {what} {path}: {error}; check the path and who may read it")
                }
                pem::Error::NoItemsFound => {
                    format!("{path} has no {what}; give a file in PEM form, with a line that begins with -----BEGIN")
                }
                error => format!("{path} has no {what} that can be read: {error}; give a file in PEM form"),
            })
        };
        let chain = CertificateDer::pem_file_iter(certificates).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
        let chain = chain.map_err(|error| unusable("certificate", certificates, error))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("private key", key, error))?;
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder.and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
        let mut config = config.map_err(|error| {
            let (certificates, key) = (certificates.display(), key.display());
            ListenError::told(match error {
                rustls::Error::InconsistentKeys(_) => format!(
                    "the private key in {key} is not that of the first certificate in {certificates}; give the two that were \
                     issued together, the server's own certificate first"
                ),
                error => format!("the certificate in {certificates} with the key in {key} cannot be used: {error}"),
            })
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Tls(Arc::new(RwLock::new(Arc::new(config)))))
    }

    /// Replaces the certificate, in this value and all its clones, for all further connections.
    ///
    /// ```
    /// # use std::path::Path;
    /// # use eventstore_server::{ListenError, Tls};
    /// fn reread(tls: &Tls, certificates: &Path, key: &Path) -> Result<(), ListenError> {
    ///     tls.replace(Tls::from_files(certificates, key)?); // files that cannot be used change nothing
    ///     Ok(())
    /// }
    /// ```
    pub fn replace(&self, with: Tls) {
        let new = with.config();
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = new;
    }

    fn config(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// A listening socket of a server.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    tls: Option<Tls>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener, UnixPath),
}

/// Removes the path when it is dropped.
#[cfg(unix)]
#[derive(Debug)]
struct UnixPath(PathBuf);

#[cfg(unix)]
impl Drop for UnixPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens at this address. A Unix socket that was left by a stopped server is replaced.
    ///
    /// # Errors
    ///
    /// If the address cannot be used.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        let failed = |error| {
            ListenError::new(format!("cannot listen on {address}; choose another address, or stop what uses it"), error)
        };
        let socket = match address {
            Address::Tcp(address) => Socket::Tcp(TcpListener::bind(address).await.map_err(failed)?),
            #[cfg(not(unix))]
            Address::Unix(_) => {
                return Err(ListenError::told("this system has no Unix sockets; listen on an address of TCP"));
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                remove_dead_socket(path).await?;
                let listener = bind_private(path).map_err(failed)?;
                Socket::Unix(listener, UnixPath(path.clone()))
            }
        };
        Ok(Listener { socket, tls: None })
    }

    /// Uses TLS.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The URL for clients, such as `http://127.0.0.1:7080`.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.socket {
            Socket::Tcp(listener) => {
                let scheme = if self.tls.is_some() { "https" } else { "http" };
                let address = listener.local_addr().map_or_else(|_| String::new(), |address| address.to_string());
                format!("{scheme}://{address}")
            }
            #[cfg(unix)]
            Socket::Unix(_, path) => format!("unix:{}", path.0.display()),
        }
    }
}

/// Removes a socket on which nobody listens.
#[cfg(unix)]
async fn remove_dead_socket(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt as _;
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::told(format!("{} exists and is not a socket; name another path", path.display())));
    }
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Err(ListenError::told(format!("another server listens on {}; stop it first", path.display()))),
        Err(_) => std::fs::remove_file(path)
            .map_err(|error| ListenError::new(format!("cannot remove the old socket {}", path.display()), error)),
    }
}

/// Nobody else may open the socket, not even between its creation and the change of its mode. So it is created in a
/// private directory.
#[cfg(unix)]
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = tempfile::Builder::new().prefix(".s").tempdir_in(parent)?;
    let made = directory.path().join("s");
    let listener = UnixListener::bind(&made)?;
    std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&made, path)?;
    Ok(listener)
}

/// Answers requests on this socket until the token is cancelled. Then ends streams with a reason, finishes accepted
/// requests, and closes the stores.
///
/// # Errors
///
/// If the socket fails, or a store cannot be closed.
pub async fn serve(server: Server, listener: Listener, stop: CancellationToken) -> Result<(), ListenError> {
    let (router, app) = server.stop_on(stop.clone()).into_parts();
    app.stores.prepare().map_err(|error| ListenError::new("cannot make the directory of the stores", error))?;
    let _ = tokio::task::spawn_blocking(|| backup::remove_left(&std::env::temp_dir())).await;
    let connections = Connections::new(router, app.limits.head_wait);
    let tls = listener.tls.clone();
    loop {
        let next = async {
            let permit = connections.permit().await;
            (listener.socket.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => break,
        };
        match (accepted, &tls) {
            (Ok(Stream::Tcp(stream)), None) => connections.serve(stream, permit),
            #[cfg(unix)]
            (Ok(Stream::Unix(stream)), _) => connections.serve(stream, permit),
            (Ok(Stream::Tcp(stream)), Some(tls)) => connections.serve_tls(stream, tls.config().into(), permit),
            // For example, too many open files: other connections may end meanwhile.
            (Err(error), _) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // No new connections are accepted, and the path of a Unix socket is free.
    drop(listener);
    connections.finish().await;
    // Sessions are no longer tied to their connections, and backups to their requests.
    app.tasks.close();
    if tokio::time::timeout(GRACE, app.tasks.wait()).await.is_err() {
        tracing::warn!("some sessions or backups did not end; the server stops all the same");
    }
    app.close().await.map_err(|error| ListenError::told(format!("closing the stores failed: {error}")))
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

impl Socket {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            #[cfg(unix)]
            Socket::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

type Permit = tokio::sync::OwnedSemaphorePermit;

struct Connections {
    builder: Builder<TokioExecutor>,
    router: Router,
    graceful: GracefulShutdown,
    room: Arc<Semaphore>,
    head_wait: Duration,
}

impl Connections {
    fn new(router: Router, head_wait: Duration) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_wait).max_buf_size(64 << 10);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(64 << 10)
            .keep_alive_interval(Some(Duration::from_secs(20)))
            .keep_alive_timeout(Duration::from_secs(20));
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        Connections { builder, router, graceful: GracefulShutdown::new(), room, head_wait }
    }

    /// Waits until another connection is allowed.
    async fn permit(&self) -> Option<Permit> {
        self.room.clone().acquire_owned().await.ok()
    }

    fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S, permit: Option<Permit>) {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE));
        let io = TokioIo::new(HalfClosed::new(Greeting::new(Box::pin(stream), self.head_wait)));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.builder.serve_connection_with_upgrades(io, service).into_owned();
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            // A lost client is not reported.
            let _ = connection.await;
            drop(permit);
        });
    }

    fn serve_tls(&self, stream: tokio::net::TcpStream, tls: TlsAcceptor, permit: Option<Permit>) {
        let head_wait = self.head_wait;
        let (builder, router, watcher) = (self.builder.clone(), self.router.clone(), self.graceful.watcher());
        tokio::spawn(async move {
            if tokio::time::timeout(head_wait, is_plain(&stream)).await.is_ok_and(|is_plain| is_plain) {
                let _ = tokio::time::timeout(GOODBYE, refuse_plain(stream)).await;
                return;
            }
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(WRITE));
            let stream = Greeting::new(Box::pin(stream), head_wait);
            let Ok(Ok(stream)) = tokio::time::timeout(head_wait, tls.accept(stream)).await else { return };
            let service = TowerToHyperService::new(router);
            let io = TokioIo::new(HalfClosed::new(Greeting::new(stream, head_wait)));
            let connection = builder.serve_connection_with_upgrades(io, service).into_owned();
            let _ = watcher.watch(connection).await;
            drop(permit);
        });
    }

    /// Waits for accepted requests, but not forever.
    async fn finish(self) {
        let mut finished = pin!(self.graceful.shutdown());
        if tokio::time::timeout(GRACE, &mut finished).await.is_err() {
            tracing::warn!("some connections did not end; the server stops all the same");
        }
    }
}

/// Whether a connection begins like plain HTTP instead of TLS.
async fn is_plain(stream: &tokio::net::TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1) if first[0].is_ascii_uppercase())
}

/// Tells a client of plain HTTP that this address uses TLS.
async fn refuse_plain(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    let detail = "this address speaks TLS; open it as https://";
    let body = Problem::new(400, "cannot_open", detail).to_json();
    let head = format!("HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM}\r\ncontent-length: {}\r\n", body.len());
    stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).await?;
    stream.shutdown().await?;
    // Closing a connection with unread data may discard the data sent last.
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

/// A connection whose client must send something soon: hyper waits without limit to detect the version of HTTP.
struct Greeting<S> {
    stream: S,
    /// The number of bytes so far that match the beginning of HTTP/2.
    greeted: usize,
    due: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// The beginning of every HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl<S> Greeting<S> {
    fn new(stream: S, wait: Duration) -> Self {
        Greeting { stream, greeted: 0, due: Some(Box::pin(tokio::time::sleep(wait))) }
    }
}

impl<S: AsyncRead> AsyncRead for Greeting<S>
where
    S: Unpin,
{
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, out);
        let Some(due) = &mut self.due else { return read };
        match read {
            Poll::Pending => match due.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            },
            Poll::Ready(read) => {
                let new = &out.filled()[before..];
                let rest = &PREFACE[self.greeted..];
                // From here on, hyper has its own time limit for the head of a request.
                let is_known = !rest.starts_with(new) || new.len() == rest.len();
                self.greeted += new.len().min(rest.len());
                if is_known {
                    self.due = None;
                }
                Poll::Ready(read)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A connection that reports its end with a delay: hyper abandons an answer when the client sends no more, although the
/// client may only have closed its sending side.
struct HalfClosed<S> {
    stream: S,
    /// When to report the end; `None` before there is one.
    due: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<S> HalfClosed<S> {
    fn new(stream: S) -> Self {
        HalfClosed { stream, due: None }
    }

    /// As long as data is sent, somebody may be reading it.
    fn has_sent(&mut self, sent: &Poll<io::Result<usize>>) {
        if let (Some(due), Poll::Ready(Ok(_))) = (&mut self.due, sent) {
            due.as_mut().reset(tokio::time::Instant::now() + HALF_CLOSED);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HalfClosed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.due.is_none() {
            let before = out.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
            if out.filled().len() > before || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let due = self.due.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED)));
        due.as_mut().poll(cx).map(Ok)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HalfClosed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.has_sent(&sent);
        sent
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.has_sent(&sent);
        sent
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_text_form() {
        for text in ["127.0.0.1:7080", "[::1]:0", "unix:/run/x.sock", "unix:./x"] {
            let address: Address = text.parse().expect(text);
            assert_eq!((address.to_string().as_str(), address.is_local()), (text, true));
        }
        for text in ["0.0.0.0:80", "10.0.0.1:80", "[::]:80"] {
            assert!(!text.parse::<Address>().expect(text).is_local());
        }
        assert_eq!("localhost:7080".parse(), "127.0.0.1:7080".parse::<Address>());
        for text in [
            "",
            "unix:",
            "localhost",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "example.com:80",
            "127.0.0.1",
            ":7080",
            "http://127.0.0.1:80",
        ] {
            text.parse::<Address>().expect_err(text);
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_unix_socket_is_private_and_replaces_only_a_dead_one() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s.sock");
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address).await.expect("bound");
        assert_eq!(listener.url(), format!("unix:{}", path.display()));
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(Listener::bind(&address).await.is_err(), "somebody listens");
        drop(listener);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        assert!(path.exists(), "left behind");
        drop(Listener::bind(&address).await.expect("replaced"));
        std::fs::write(&path, "a file").expect("written");
        assert!(Listener::bind(&address).await.is_err(), "no socket");
        assert_eq!(std::fs::read(&path).expect("there"), b"a file");
        assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 1, "nothing is left");
    }
}
