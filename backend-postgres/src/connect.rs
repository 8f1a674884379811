//! Connections: created, pooled, and returned to the pool; cancelled when a caller leaves in the middle of a statement.

use std::fmt;
use std::future::poll_fn;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, Pool, RecycleError, RecycleResult};
use eventstore_api::{Error, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, mpsc};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::Severity;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Connection, NoTls, RowStream, Socket, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::Options;
use crate::error::{ConnectError, PgError, reason};
use crate::options::invalid;
use crate::probe;
use crate::sql::{PREPARED, Query};

/// Connects to the configured servers.
#[derive(Clone)]
pub(crate) struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// The runtime in which the store was opened.
    handle: Handle,
    prepares: bool,
    /// The time limit for a usable connection, over all hosts.
    limit: Duration,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive() // it contains the password
    }
}

impl Connector {
    /// Creates a connector. It reads files.
    pub(crate) fn new(options: &Options, handle: Handle) -> Result<Self> {
        let mut config = options.config()?;
        if let Some(path) = &options.password_file {
            let text = std::fs::read_to_string(path);
            let text =
                text.map_err(|error| invalid("password_file", &format!("{} cannot be read: {error}", path.display())))?;
            config.password(text.lines().next().unwrap_or_default());
        }
        let tls = match options.is_tls(&config) {
            true => Some(tls(options.ca_file.as_deref())?),
            false => None,
        };
        let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(u32::MAX);
        let limit = options.connect_timeout.saturating_mul(hosts);
        Ok(Connector { config, tls, handle, prepares: options.prepare, limit })
    }

    /// The same for servers of one kind.
    pub(crate) fn to(&self, target: TargetSessionAttrs) -> Self {
        let mut connector = self.clone();
        connector.config.target_session_attrs(target);
        connector
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// A new connection. Its notifications are sent to `heard`.
    pub(crate) async fn connect(
        &self,
        heard: Option<mpsc::UnboundedSender<String>>,
    ) -> std::result::Result<Session, ConnectError> {
        let this = self.clone();
        let connecting = async move {
            let mut session = match this.tls {
                Some(tls) => {
                    let (client, connection) = this.config.connect(tls).await?;
                    Session::new(client, connection, heard)
                }
                None => {
                    let (client, connection) = this.config.connect(NoTls).await?;
                    Session::new(client, connection, heard)
                }
            };
            session.prepares = this.prepares && probe::is_direct(&session.client).await?;
            Ok(session)
        };
        // The client library limits only the time to reach a server, not the time for its answer.
        let limit = self.limit;
        let connecting =
            async move { tokio::time::timeout(limit, connecting).await.unwrap_or(Err(ConnectError::Silent(limit))) };
        // In the runtime of the store, whatever the current one is.
        match self.handle.spawn(connecting).await {
            Ok(connected) => connected,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime has shut down: nothing more can happen.
            Err(_) => std::future::pending().await,
        }
    }

    async fn cancel(&self, token: CancelToken) {
        let cancelled = match &self.tls {
            Some(tls) => token.cancel_query(tls.clone()).await,
            None => token.cancel_query(NoTls).await,
        };
        if let Err(error) = cancelled {
            tracing::debug!(error = reason(&error), "a statement could not be cancelled");
        }
    }
}

fn tls(ca_file: Option<&Path>) -> Result<MakeRustlsConnect> {
    let mut roots = rustls::RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let refused = |why: String| invalid("ca_file", &format!("{} {why}", path.display()));
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| refused(format!("is not in PEM form: {error}")))?;
                roots.add(certificate).map_err(|error| refused(format!("has an invalid certificate: {error}")))?;
            }
            if roots.is_empty() {
                return Err(refused("has no certificate".to_owned()));
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::engine("set up TLS", error))?;
    Ok(MakeRustlsConnect::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// A connection and its prepared statements.
pub(crate) struct Session {
    client: Client,
    statements: [OnceCell<Statement>; PREPARED],
    prepares: bool,
    /// The newest warning of the server.
    warning: Arc<Mutex<Option<String>>>,
}

impl Session {
    fn new<S>(client: Client, connection: Connection<Socket, S>, heard: Option<mpsc::UnboundedSender<String>>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let warning = Arc::new(Mutex::new(None));
        tokio::spawn(drive(connection, heard, warning.clone()));
        Session { client, statements: [const { OnceCell::const_new() }; PREPARED], prepares: false, warning }
    }

    /// Runs a statement. Calls that are started together are pipelined.
    pub(crate) async fn query(
        &self,
        query: &Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> std::result::Result<RowStream, PgError> {
        match query.place.filter(|_| self.prepares).and_then(|place| self.statements.get(place)) {
            Some(statement) => {
                let prepare = || self.client.prepare_typed(&query.text, &query.types);
                let statement = statement.get_or_try_init(prepare).await?;
                self.client.query_raw(statement, parameters.iter().copied()).await
            }
            None => {
                let typed = parameters.iter().copied().zip(query.types.iter().cloned());
                self.client.query_typed_raw(&query.text, typed).await
            }
        }
    }

    /// Prepares a statement, so that its next run takes one round trip.
    pub(crate) async fn prepare(&self, query: &Query) -> std::result::Result<(), PgError> {
        if let Some(statement) = query.place.filter(|_| self.prepares).and_then(|place| self.statements.get(place)) {
            statement.get_or_try_init(|| self.client.prepare_typed(&query.text, &query.types)).await?;
        }
        Ok(())
    }

    /// The latest warning since the last call.
    pub(crate) fn take_warning(&self) -> Option<String> {
        self.warning.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Drives a connection until it ends.
async fn drive<S>(
    mut connection: Connection<Socket, S>,
    heard: Option<mpsc::UnboundedSender<String>>,
    warning: Arc<Mutex<Option<String>>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                if notice.parsed_severity() == Some(Severity::Warning) {
                    tracing::warn!(warning = notice.message(), "the server warns");
                    *warning.lock().unwrap_or_else(PoisonError::into_inner) = Some(notice.message().to_owned());
                }
            }
            Some(Ok(AsyncMessage::Notification(notification))) => {
                if let Some(heard) = &heard {
                    let _ = heard.send(notification.payload().to_owned()); // fails if nobody listens any more
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = reason(&error), "a connection was lost");
                return;
            }
            None => return,
        }
    }
}

impl managed::Manager for Connector {
    type Type = Session;
    type Error = ConnectError;

    async fn create(&self) -> std::result::Result<Session, ConnectError> {
        self.connect(None).await
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<ConnectError> {
        match session.is_closed() {
            true => Err(RecycleError::message("the connection was lost")),
            false => Ok(()),
        }
    }
}

/// A connection of the pool. It counts as in the middle of a statement until [`InUse::done`] is called.
pub(crate) struct InUse {
    session: Option<Object<Connector>>,
}

impl InUse {
    pub(crate) fn new(session: Object<Connector>) -> Self {
        InUse { session: Some(session) }
    }

    /// The statement has ended.
    pub(crate) fn done(mut self) {
        self.session = None;
    }

    /// The session.
    ///
    /// # Panics
    ///
    /// Never: it is present until the end.
    pub(crate) fn session(&self) -> &Session {
        self.session.as_ref().expect("it is there until the end")
    }
}

/// The caller left in the middle of a statement. It is cancelled on the server together with the connection; otherwise
/// a late cancel request could hit a statement of the connection's next user. A statement that ends at once by itself
/// is left alone.
impl Drop for InUse {
    fn drop(&mut self) {
        const AT_ONCE: Duration = Duration::from_millis(5);
        let Some(session) = self.session.take() else { return };
        let Some(pool) = Object::pool(&session) else { return };
        let connector = pool.manager().clone();
        pool.manager().handle().spawn(async move {
            if !matches!(tokio::time::timeout(AT_ONCE, session.batch_execute("")).await, Ok(Ok(()))) {
                let session = Object::take(session);
                connector.cancel(session.cancel_token()).await;
            }
        });
    }
}

pub(crate) type Sessions = Pool<Connector>;
