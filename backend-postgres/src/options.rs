use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use eventstore_api::{Durability, Error, Result};
use eventstore_wire::{Query, parse_duration};
use tokio_postgres::config::Host;
use tokio_postgres::{Config, config};

/// Options of a store on PostgreSQL.
///
/// In a URL, each option has its field's name: `postgres://app@host1,host2/db?schema=orders&reads=standby`. The values
/// are percent-decoded. In addition, a URL may have the connection parameters of PostgreSQL's own URLs: `host`, `port`,
/// `user`, `password`, `dbname`, `application_name`, `options`, `keepalives` and the related ones, `tcp_user_timeout`,
/// `channel_binding`, `load_balance_hosts`, and those named at the fields here.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The address of the database and the user: `postgres://user@host:5432/db`, with several hosts separated by
    /// commas. Of several hosts, the first that accepts writes is used.
    pub url: String,
    /// The password, if the URL has none. Default: the environment variable `PGPASSWORD`, if it is set.
    pub password: Option<String>,
    /// A file with the password in its first line. It is read when the store is opened. Default: none.
    pub password_file: Option<PathBuf>,
    /// The schema of the store, which is its name: ASCII letters, digits and `_`, at most 52. Default: `eventstore`.
    pub schema: String,
    /// The durability of appends that do not set one. Default: [`Durability::Sync`].
    pub durability: Durability,
    /// Whether the schema and its tables are created if they are missing. Default: true.
    pub create_if_missing: bool,
    /// Whether appends and garbage collections are refused. Default: false.
    pub read_only: bool,
    /// Where reads go. `target_session_attrs=prefer-standby` in a URL is `reads=standby`. Default: [`Reads::Primary`].
    pub reads: Reads,
    /// The value of `synchronous_commit` for appends with [`Durability::Sync`]. Default: the server's setting for this
    /// user and database, which is rejected if it is weaker than [`On`](SynchronousCommit::On).
    pub synchronous_commit: Option<SynchronousCommit>,
    /// The most connections for reads. There is one more for appends, and one that listens. Default: 8, at least 1.
    pub max_connections: usize,
    /// The time limit for connecting, for each host. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long a call is retried while the server cannot be reached, unless its context ends before. Then it is
    /// `Unavailable`. A call that waits for events counts from the loss of the connection, or from its own beginning if
    /// that is later. Default: 30 s.
    pub retry_for: Duration,
    /// How often the head is polled while somebody waits for events and listening is not possible. Default: 100 ms, at
    /// least 1 ms.
    pub poll_interval: Duration,
    /// Whether the connection is encrypted and the server's certificate verified; there is no encryption without
    /// verification. `sslmode` in a URL: `disable` is false; `require`, `verify-ca` and `verify-full` are true.
    /// Default: false if all hosts are this machine or sockets, otherwise true.
    pub tls: Option<bool>,
    /// A PEM file with the certificates of trusted authorities. `sslrootcert` in a URL. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether named statements are prepared once for each connection. They never are behind a connection pooler, which
    /// may give the connection to somebody else between transactions. Default: true.
    pub prepare: bool,
    #[doc(hidden)]
    pub mutants: crate::mutants::Mutants,
}

/// Where reads go. In a URL: `primary`, `standby`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reads {
    /// The server that accepts appends.
    #[default]
    Primary,
    /// A hot standby, if one of the hosts is one and has everything that this store has appended or read before;
    /// otherwise the primary. Appends of other processes may be missing for as long as the standby lags behind.
    Standby,
}

impl FromStr for Reads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "primary" => Ok(Reads::Primary),
            "standby" => Ok(Reads::Standby),
            _ => Err(invalid("reads", &format!("{text:?} is not one of primary, standby"))),
        }
    }
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reads::Primary => "primary",
            Reads::Standby => "standby",
        })
    }
}

/// What an append waits for. In a URL: `on`, `remote_apply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SynchronousCommit {
    /// The events are on the server's disk, and on that of its synchronous standby if it has one.
    On,
    /// In addition, the synchronous standby shows them to readers.
    RemoteApply,
}

impl FromStr for SynchronousCommit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "on" => Ok(SynchronousCommit::On),
            "remote_apply" => Ok(SynchronousCommit::RemoteApply),
            _ => Err(invalid("synchronous_commit", &format!("{text:?} is not one of on, remote_apply"))),
        }
    }
}

impl fmt::Display for SynchronousCommit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SynchronousCommit::On => "on",
            SynchronousCommit::RemoteApply => "remote_apply",
        })
    }
}

/// The parameters of a URL that the client library handles.
const CONNECTION: [&str; 15] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "channel_binding",
    "load_balance_hosts",
];

impl Options {
    /// The default options for the database at this URL, which may have connection parameters.
    pub fn new(url: impl Into<String>) -> Self {
        Options {
            url: url.into(),
            password: None,
            password_file: None,
            schema: "eventstore".to_owned(),
            durability: Durability::Sync,
            create_if_missing: true,
            read_only: false,
            reads: Reads::Primary,
            synchronous_commit: None,
            max_connections: 8,
            connect_timeout: Duration::from_secs(5),
            retry_for: Duration::from_secs(30),
            poll_interval: Duration::from_millis(100),
            tls: None,
            ca_file: None,
            prepare: true,
            mutants: crate::mutants::Mutants::default(),
        }
    }

    /// The options in a URL.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](Error::InvalidOption) for an invalid URL, and for an option that is unknown or cannot be
    /// parsed.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::from_url_and(url, std::env::var("PGPASSWORD").ok())
    }

    fn from_url_and(url: &str, password: Option<String>) -> Result<Self> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let is_of_connection = |pair: &&str| CONNECTION.contains(&pair.split('=').next().unwrap_or_default());
        let (connection, ours): (Vec<&str>, Vec<&str>) =
            query.split('&').filter(|pair| !pair.is_empty()).partition(is_of_connection);
        let base = match connection.is_empty() {
            true => base.to_owned(),
            false => format!("{base}?{}", connection.join("&")),
        };
        let mut options = Options::new(base);
        let mut given = Query::new(&ours.join("&"))?;
        options.password = password.filter(|password| !password.is_empty());
        options.password_file = given.text("password_file")?.map(PathBuf::from);
        if options.password_file.is_some() {
            options.password = None;
        }
        options.schema = given.text("schema")?.unwrap_or(options.schema);
        options.durability = given.value("durability")?.unwrap_or_default();
        options.create_if_missing = given.flag_or("create_if_missing", true)?;
        options.read_only = given.flag("read_only")?;
        options.prepare = given.flag_or("prepare", true)?;
        options.reads = given.value("reads")?.unwrap_or_default();
        match given.text("target_session_attrs")?.as_deref() {
            None | Some("any" | "read-write" | "primary") => {}
            Some("prefer-standby") => options.reads = Reads::Standby,
            Some("read-only" | "standby") => (options.reads, options.read_only) = (Reads::Standby, true),
            Some(other) => {
                let known = "any, read-write, primary, read-only, standby, prefer-standby";
                return Err(invalid("target_session_attrs", &format!("{other:?} is not one of {known}")));
            }
        }
        options.synchronous_commit = given.value("synchronous_commit")?;
        options.max_connections = given.value("max_connections")?.unwrap_or(options.max_connections);
        for (name, duration) in [
            ("connect_timeout", &mut options.connect_timeout),
            ("retry_for", &mut options.retry_for),
            ("poll_interval", &mut options.poll_interval),
        ] {
            if let Some(text) = given.text(name)? {
                // In the client library, a time without a unit is in seconds.
                let is_number = text.bytes().all(|digit| digit.is_ascii_digit());
                let text = if is_number { format!("{text}s") } else { text };
                *duration = parse_duration(&text).map_err(|reason| invalid(name, &reason))?;
            }
        }
        options.tls = match given.text("sslmode")?.as_deref() {
            None | Some("allow" | "prefer") => None,
            Some("disable") => Some(false),
            Some("require" | "verify-ca" | "verify-full") => Some(true),
            Some(other) => {
                let known = "disable, allow, prefer, require, verify-ca, verify-full";
                return Err(invalid("sslmode", &format!("{other:?} is not one of {known}")));
            }
        };
        let ca_file = [given.text("ca_file")?, given.text("sslrootcert")?];
        options.ca_file = ca_file.into_iter().flatten().next().map(PathBuf::from);
        given.finish().map_err(|error| match error {
            Error::InvalidOption { option, .. } => {
                let known = "schema, durability, create_if_missing, read_only, reads, synchronous_commit, max_connections, \
                             connect_timeout, retry_for, poll_interval, password_file, sslmode, ca_file, prepare";
                invalid(&option, &format!("a store on PostgreSQL has no such option; it has {known}"))
            }
            other => other,
        })?;
        options.config()?;
        Ok(options)
    }

    /// Checks everything that can be checked without the server.
    pub(crate) fn config(&self) -> Result<Config> {
        let mut config = Config::from_str(&self.url).map_err(|error| {
            // Errors must not contain anything that may have a password.
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            invalid(
                "store",
                &format!("it is not a PostgreSQL URL ({reason}); write postgres://user@host:5432/database"),
            )
        })?;
        if config.get_hosts().is_empty() {
            return Err(invalid("store", "it has no host; write postgres://user@host:5432/database"));
        }
        // Such a host is the rest of a password and must not be shown.
        if config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(name) if name.contains('@'))) {
            return Err(invalid("store", "it has more than one @; write one that belongs to the password as %40"));
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if self.schema.is_empty() || self.schema.len() > 52 || !self.schema.bytes().all(is_name) {
            let reason = format!("{:?} is not 1 to 52 ASCII letters, digits and _", self.schema);
            return Err(invalid("schema", &reason));
        }
        if self.schema.starts_with("pg_") {
            return Err(invalid("schema", "names that begin with pg_ are the server's own"));
        }
        if self.max_connections == 0 {
            return Err(invalid("max_connections", "it is 0, but reads need at least one"));
        }
        if self.connect_timeout.is_zero() {
            return Err(invalid("connect_timeout", "it is zero, so nothing can connect"));
        }
        if self.poll_interval < Duration::from_millis(1) {
            return Err(invalid("poll_interval", "it is less than 1ms, which would keep the server busy"));
        }
        if self.ca_file.is_some() && !self.is_tls(&config) {
            return Err(invalid(
                "ca_file",
                "the connection is not encrypted; leave it out, or write sslmode=verify-full",
            ));
        }
        config.connect_timeout(self.connect_timeout);
        if config.get_application_name().is_none() {
            config.application_name("eventstore");
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(Duration::from_secs(30));
        }
        // With the default of two hours, an answer from a machine that is gone would be awaited for that long.
        let has = |name: &str| {
            let parameters = self.url.split_once('?').map_or("", |(_, parameters)| parameters);
            parameters.split('&').any(|pair| pair.split('=').next() == Some(name))
        };
        if !has("keepalives_idle") {
            config.keepalives_idle(Duration::from_secs(10));
        }
        if !has("keepalives_interval") {
            config.keepalives_interval(Duration::from_secs(5));
        }
        if !has("keepalives_retries") {
            config.keepalives_retries(4);
        }
        config.ssl_mode(if self.is_tls(&config) { config::SslMode::Require } else { config::SslMode::Disable });
        if config.get_password().is_none()
            && let Some(password) = &self.password
        {
            config.password(password);
        }
        Ok(config)
    }

    /// Whether connections are encrypted.
    pub(crate) fn is_tls(&self, config: &Config) -> bool {
        let is_here = |host: &Host| match host {
            Host::Tcp(name) => {
                name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            Host::Unix(_) => true,
        };
        self.tls.unwrap_or_else(|| !config.get_hosts().iter().all(is_here))
    }

    /// The store's address, without secrets.
    pub(crate) fn shown(&self, config: &Config) -> String {
        let ports = config.get_ports();
        let host = |(nth, host): (usize, &Host)| {
            let port = ports.get(nth).or_else(|| ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        };
        let hosts: Vec<_> = config.get_hosts().iter().enumerate().map(host).collect();
        let database = config.get_dbname().or_else(|| config.get_user()).unwrap_or_default();
        format!("postgres://{}/{database}?schema={}", hosts.join(","), self.schema)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A rejected URL may have a password.
        let store = self.config().map_or_else(|_| "(not valid)".to_owned(), |config| self.shown(&config));
        f.debug_struct("Options")
            .field("store", &store)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("password_file", &self.password_file)
            .field("durability", &self.durability)
            .field("create_if_missing", &self.create_if_missing)
            .field("read_only", &self.read_only)
            .field("reads", &self.reads)
            .field("synchronous_commit", &self.synchronous_commit)
            .field("max_connections", &self.max_connections)
            .field("connect_timeout", &self.connect_timeout)
            .field("retry_for", &self.retry_for)
            .field("poll_interval", &self.poll_interval)
            .field("tls", &self.tls)
            .field("ca_file", &self.ca_file)
            .field("prepare", &self.prepare)
            .finish_non_exhaustive()
    }
}

pub(crate) fn invalid(option: &str, reason: &str) -> Error {
    Error::InvalidOption { option: option.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> Result<Options> {
        Options::from_url_and(url, None)
    }

    fn refused(url: &str) -> (String, String) {
        match of(url) {
            Err(Error::InvalidOption { option, reason }) => (option, reason),
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn a_url_has_the_parameters_of_both() {
        let options = of("postgres://app:s3cret@db1:5433,db2/shop?schema=orders&application_name=shop&connect_timeout=3&retry_for=2s\
                          &reads=standby&synchronous_commit=remote_apply&prepare=false&durability=buffered&max_connections=2")
        .expect("valid");
        assert_eq!(options.url, "postgres://app:s3cret@db1:5433,db2/shop?application_name=shop");
        assert_eq!((options.schema.as_str(), options.reads), ("orders", Reads::Standby));
        assert_eq!((options.connect_timeout.as_secs(), options.retry_for.as_secs()), (3, 2));
        assert_eq!(options.synchronous_commit, Some(SynchronousCommit::RemoteApply));
        assert!(!options.prepare && options.durability == Durability::Buffered && options.max_connections == 2);
        let config = options.config().expect("valid");
        assert!(options.is_tls(&config));
        assert_eq!(options.shown(&config), "postgres://db1:5433,db2:5432/shop?schema=orders");
        assert!(!format!("{options:?}").contains("s3cret"));
    }

    #[test]
    fn a_machine_that_is_gone_is_noticed_within_half_a_minute_unless_the_url_says_otherwise() {
        let config = of("postgres://db/x").and_then(|options| options.config()).expect("valid");
        let longest = |config: &Config| {
            let retries = config.get_keepalives_retries().expect("set");
            config.get_keepalives_idle() + config.get_keepalives_interval().expect("set") * retries
        };
        assert_eq!(longest(&config), Duration::from_secs(30));
        let url = "postgres://db/x?keepalives_idle=60&keepalives_interval=10&keepalives_retries=3";
        let config = of(url).and_then(|options| options.config()).expect("valid");
        assert_eq!(longest(&config), Duration::from_secs(90));
    }

    #[test]
    fn only_what_leaves_the_machine_is_encrypted_by_default() {
        for (url, is_tls) in [
            ("postgres://localhost/x", false),
            ("postgres://127.0.0.1/x", false),
            ("postgres:///x?host=/run/postgresql", false),
            ("postgres://localhost,db/x", true),
            ("postgres://db/x?sslmode=disable", false),
            ("postgres://localhost/x?sslmode=require", true),
        ] {
            let options = of(url).expect(url);
            assert_eq!(options.is_tls(&options.config().expect(url)), is_tls, "{url}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_without_the_password() {
        for (url, option) in [
            ("postgres://app:s3cret@db/x?schema=a-b", "schema"),
            ("postgres://app:s3cret@db/x?schema=", "schema"),
            ("postgres://app:s3cret@db/x?schema=pg_x", "schema"),
            ("postgres://app:s3cret@db/x?reads=both", "reads"),
            ("postgres://app:s3cret@db/x?sslmode=yes", "sslmode"),
            ("postgres://app:s3cret@db/x?poll_interval=0", "poll_interval"),
            ("postgres://app:s3cret@db/x?max_connections=0", "max_connections"),
            ("postgres://app:s3cret@db/x?connect_timeout=0", "connect_timeout"),
            ("postgres://app:s3cret@db/x?synchronous_commit=local", "synchronous_commit"),
            ("postgres://app:s3cret@db/x?target_session_attrs=x", "target_session_attrs"),
            ("postgres://app:s3cret@db/x?prepare=maybe", "prepare"),
            ("postgres://app:s3cret@db/x?sslmode=disable&ca_file=x", "ca_file"),
            ("postgres://app:s3cret@db/x?colour=blue", "colour"),
            ("postgres://app:s3cret@db:port/x", "store"),
            ("postgres://app:not@s3cret@db/x", "store"),
            ("postgres://", "store"),
        ] {
            let (named, reason) = refused(url);
            assert_eq!(named, option, "{url}: {reason}");
            assert!(!reason.contains("s3cret"), "{reason}");
        }
    }
}
