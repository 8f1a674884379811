use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use eventstore_api::{Error, Result};
use eventstore_wire::Query;
use http::Uri;

/// Options of a store on a server.
///
/// In a URL, each option has its field's name:
/// `http://host:7080/stores/orders?token_file=/run/secrets/orders&retry_for=10s`. The values are percent-decoded. The
/// token itself cannot be in a URL.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The store's base URL: `http://host:7080` for a server of one store, `https://host/stores/orders` for one of
    /// many, `unix:/run/app/store.sock` for a server on a Unix socket, and `unix:/run/app/store.sock:/stores/orders`
    /// for a base path on it.
    pub url: String,
    /// The token, which is sent only as `Authorization: Bearer`. Default: none.
    pub token: Option<String>,
    /// A file with the token in its first line. It is read when the store is opened. Default: none.
    pub token_file: Option<PathBuf>,
    /// A PEM file with the certificates of trusted authorities. Default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The time limit for connecting, including TLS. Opening a store takes at most this time and one answer of the
    /// server, and is retried for at most `retry_for`. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long a call is retried while the server cannot be reached or accepts no requests, unless its context ends
    /// before. Then it is `Unavailable`. Waiting for events is retried until its context ends, unless `retry_waits` is
    /// false. Default: 30 s.
    pub retry_for: Duration,
    /// Whether waiting for events continues until its context ends, even while the server cannot be reached. If false,
    /// `retry_for` limits it like every call, so that the caller learns of an outage. Default: true.
    pub retry_waits: bool,
    /// How long appends wait without any data from the server before the connection counts as lost. After half of that
    /// time, the server is pinged, and has the other half to answer. Default: 20 s, at least 10 ms.
    pub lost_after: Duration,
    /// Whether appends and garbage collections are refused here, whatever the token allows. Default: false.
    pub read_only: bool,
    /// Whether the token may be sent over plain `http` to another machine, where others can read it in transit.
    /// Default: false.
    pub insecure: bool,
}

/// The names of the options in a URL.
pub(crate) const KNOWN: [&str; 8] =
    ["token_file", "ca_file", "connect_timeout", "retry_for", "retry_waits", "lost_after", "read_only", "insecure"];

impl Options {
    /// The default options for the store at this base URL, which has no options.
    pub fn new(url: impl Into<String>) -> Self {
        Options {
            url: url.into(),
            token: None,
            token_file: None,
            ca_file: None,
            connect_timeout: Duration::from_secs(5),
            retry_for: Duration::from_secs(30),
            retry_waits: true,
            lost_after: Duration::from_secs(20),
            read_only: false,
            insecure: false,
        }
    }

    /// The options in a URL. Without `token_file`, the token is taken from the environment variable `EVENTSTORE_TOKEN`,
    /// if it is set.
    ///
    /// # Errors
    ///
    /// [`InvalidOption`](Error::InvalidOption) for an invalid URL, and for an option that is unknown or cannot be
    /// parsed.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::from_url_with(url, &KNOWN, |_| Ok(()))
    }

    /// Like [`from_url`](Options::from_url), with further options, which `take` handles.
    pub(crate) fn from_url_with(
        url: &str,
        known: &[&str],
        take: impl FnOnce(&mut Query) -> Result<()>,
    ) -> Result<Self> {
        Self::from_url_and(url, std::env::var("EVENTSTORE_TOKEN").ok(), known, take)
    }

    fn from_url_and(
        url: &str,
        token: Option<String>,
        known: &[&str],
        take: impl FnOnce(&mut Query) -> Result<()>,
    ) -> Result<Self> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut options = Options::new(base);
        options.address()?; // without a possible password in its error
        let mut given = Query::new(query)?;
        for secret in ["token", "password"] {
            if given.text(secret)?.is_some() {
                return Err(invalid(
                    secret,
                    "a URL is shown, logged and remembered; put the token into a file and write token_file=PATH, or into the \
                     environment variable EVENTSTORE_TOKEN",
                ));
            }
        }
        take(&mut given)?;
        let path = |text: Option<String>| text.map(PathBuf::from);
        options.token_file = path(given.text("token_file")?);
        options.ca_file = path(given.text("ca_file")?);
        for (name, duration) in [
            ("connect_timeout", &mut options.connect_timeout),
            ("retry_for", &mut options.retry_for),
            ("lost_after", &mut options.lost_after),
        ] {
            *duration = given.duration(name)?.unwrap_or(*duration);
        }
        options.retry_waits = given.flag_or("retry_waits", options.retry_waits)?;
        options.read_only = given.flag("read_only")?;
        options.insecure = given.flag("insecure")?;
        given.finish().map_err(|error| match error {
            Error::InvalidOption { option, .. } => {
                invalid(&option, &format!("a store on a server has no such option; it has {}", known.join(", ")))
            }
            other => other,
        })?;
        if options.token_file.is_none() {
            options.token = token.filter(|token| !token.is_empty());
        }
        options.validate()?;
        Ok(options)
    }

    /// Checks everything that can be checked without the server.
    pub(crate) fn validate(&self) -> Result<Address> {
        let address = self.address()?;
        if self.connect_timeout.is_zero() {
            return Err(invalid("connect_timeout", "it is zero, so nothing can connect"));
        }
        if self.lost_after < Duration::from_millis(10) {
            return Err(invalid("lost_after", "it is less than 10ms, in which no server can answer"));
        }
        if self.token.is_some() && self.token_file.is_some() {
            return Err(invalid("token_file", "the token is given as well; give one of them"));
        }
        if self.ca_file.is_some() && !address.is_tls() {
            let reason = format!("only https has certificates, and {address} is not; leave it out, or write https://");
            return Err(invalid("ca_file", &reason));
        }
        let has_token = self.token.is_some() || self.token_file.is_some();
        if has_token && address.can_be_overheard() && !self.insecure {
            return Err(invalid(
                "insecure",
                &format!(
                    "{address} is another machine, and others on the network can read the token; use https://, or \
                     insecure=true if the network is safe"
                ),
            ));
        }
        Ok(address)
    }

    fn address(&self) -> Result<Address> {
        Address::parse(&self.url)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A rejected URL may have a password.
        let url = self.address().map_or_else(|_| "(not valid)".to_owned(), |address| address.to_string());
        f.debug_struct("Options")
            .field("url", &url)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("token_file", &self.token_file)
            .field("ca_file", &self.ca_file)
            .field("connect_timeout", &self.connect_timeout)
            .field("retry_for", &self.retry_for)
            .field("retry_waits", &self.retry_waits)
            .field("lost_after", &self.lost_after)
            .field("read_only", &self.read_only)
            .field("insecure", &self.insecure)
            .finish()
    }
}

pub(crate) fn invalid(option: &str, reason: &str) -> Error {
    Error::InvalidOption { option: option.to_owned(), reason: reason.to_owned() }
}

/// Refuses writes to a store that was opened for reading.
pub(crate) fn check_writable(is_read_only: bool, what: &str) -> Result<()> {
    match is_read_only {
        false => Ok(()),
        true => Err(Error::Unsupported {
            what: format!("{what} on a store that was opened to read only; open it to write"),
        }),
    }
}

/// The address of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) place: Place,
    /// The prefix of the path of every request, such as `/stores/orders`; without a trailing `/`.
    pub(crate) base: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Host { is_tls: bool, host: String, port: u16 },
    Socket(PathBuf),
}

impl Address {
    fn parse(url: &str) -> Result<Self> {
        let refused = |reason: &str| Err(invalid("store", reason));
        if url.contains('#') {
            return refused("a store's URL has no # part; leave it out");
        }
        if let Some(rest) = url.strip_prefix("unix:") {
            if rest.starts_with("//") {
                let name = rest.trim_start_matches('/');
                return refused(&format!("{url:?} begins with //; write unix:/{name} for an absolute path"));
            }
            let (socket, base) = rest.split_once(":/").unwrap_or((rest, ""));
            if socket.is_empty() {
                return refused("the path of the socket is missing; write unix:/run/app/store.sock");
            }
            let base = base.trim_matches('/');
            let base = if base.is_empty() { String::new() } else { format!("/{base}") };
            if base.parse::<Uri>().is_err() && !base.is_empty() {
                return refused(&format!("{base:?} is not the path of a URL; write what is not ASCII as %XX"));
            }
            return Ok(Address { place: Place::Socket(socket.into()), base });
        }
        // Errors must not contain anything that may have a password.
        let authority = url.split_once("//").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        if authority.contains('@') {
            return refused(
                "user names and passwords in a URL are not used; a server wants a token: write token_file=PATH, or set the \
                 environment variable EVENTSTORE_TOKEN",
            );
        }
        let Ok(uri) = url.parse::<Uri>() else {
            return refused(&format!("{url:?} is not a URL; write it as http://host:7080/stores/name"));
        };
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return refused(&format!("{url:?} does not begin with http://, https:// or unix:")),
        };
        if uri.query().is_some() {
            return refused("the options of a URL are read by Options::from_url");
        }
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        if host.is_empty() {
            return refused(&format!("{url:?} has no host; write it as http://host:7080/stores/name"));
        }
        // The text in place of a port must be one: the default port may be another server.
        let authority = uri.authority().map_or("", |authority| authority.as_str()).to_ascii_lowercase();
        let behind_host = authority.strip_prefix(&host).or_else(|| authority.rsplit_once(']').map(|(_, rest)| rest));
        if uri.port_u16().is_none() && behind_host.is_some_and(|rest| !rest.is_empty()) {
            return refused(&format!("{authority:?} has no port that is a number from 0 to 65535"));
        }
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let base = uri.path().trim_end_matches('/').to_owned();
        Ok(Address { place: Place::Host { is_tls, host, port }, base })
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.place, Place::Host { is_tls: true, .. })
    }

    /// Whether others can read the traffic to this address.
    fn can_be_overheard(&self) -> bool {
        match &self.place {
            Place::Host { is_tls: false, host, .. } => !is_loopback(host),
            _ => false,
        }
    }

    /// The value of the header `Host`. Servers on loopback or a socket accept only loopback names.
    pub(crate) fn authority(&self) -> String {
        match &self.place {
            Place::Host { is_tls, host, port } => match (is_tls, port) {
                (false, 80) | (true, 443) => host.clone(),
                _ => format!("{host}:{port}"),
            },
            Place::Socket(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Host { is_tls, .. } => {
                let scheme = if *is_tls { "https" } else { "http" };
                write!(f, "{scheme}://{}{}", self.authority(), self.base)
            }
            Place::Socket(path) if self.base.is_empty() => write!(f, "unix:{}", path.display()),
            Place::Socket(path) => write!(f, "unix:{}:{}", path.display(), self.base),
        }
    }
}

/// Whether a host is this machine, regardless of name servers.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> Options {
        Options::from_url_and(url, None, &KNOWN, |_| Ok(())).expect(url)
    }

    fn refused(url: &str, token: Option<&str>) -> (String, String) {
        match Options::from_url_and(url, token.map(str::to_owned), &KNOWN, |_| Ok(())) {
            Err(Error::InvalidOption { option, reason }) => (option, reason),
            other => panic!("{url}: expected InvalidOption, got {other:?}"),
        }
    }

    #[test]
    fn every_option_can_stand_in_a_url() {
        let all = options(
            "https://host:7080/stores/orders/?token_file=/run/a%20b&ca_file=ca.pem&connect_timeout=2s&retry_for=500ms&\
             retry_waits=false&lost_after=3s&read_only=true&insecure",
        );
        assert_eq!(all.url, "https://host:7080/stores/orders/");
        assert_eq!((all.token_file, all.ca_file), (Some("/run/a b".into()), Some("ca.pem".into())));
        assert_eq!((all.connect_timeout, all.retry_for), (Duration::from_secs(2), Duration::from_millis(500)));
        assert_eq!((all.lost_after, all.read_only, all.insecure), (Duration::from_secs(3), true, true));
        assert!(!all.retry_waits && options("http://h").retry_waits);
        for (url, named) in [
            ("http://h?colour=red", "colour"),
            ("http://h?retry_for=soon", "retry_for"),
            ("http://h?connect_timeout=0s", "connect_timeout"),
            ("http://h?lost_after=1ms", "lost_after"),
            ("http://h?read_only=maybe", "read_only"),
            ("http://h?token=secret", "token"),
            ("http://localhost?ca_file=x", "ca_file"),
        ] {
            let (option, reason) = refused(url, None);
            assert_eq!(option, named, "{url}");
            assert!(!reason.contains("secret"), "{reason}");
        }
    }

    #[test]
    fn a_url_leads_to_a_place_and_a_base() {
        for (url, shown, base, authority) in [
            ("http://Host", "http://host", "", "host"),
            ("http://host:7080/", "http://host:7080", "", "host:7080"),
            ("https://host:443/stores/a/", "https://host/stores/a", "/stores/a", "host"),
            ("http://[::1]:7080/s%20x", "http://[::1]:7080/s%20x", "/s%20x", "[::1]:7080"),
            ("unix:/run/app/store.sock", "unix:/run/app/store.sock", "", "localhost"),
            ("unix:./s.sock:/stores/a/", "unix:./s.sock:/stores/a", "/stores/a", "localhost"),
            ("unix:/run/s.sock:/", "unix:/run/s.sock", "", "localhost"),
        ] {
            let address = Address::parse(url).expect(url);
            assert_eq!(
                (address.to_string().as_str(), address.base.as_str(), address.authority().as_str()),
                (shown, base, authority),
                "{url}"
            );
        }
        for url in [
            "",
            "http:",
            "http://",
            "http:/x",
            "ftp://h",
            "lmdb:./d",
            "http://127.0.0.1:port",
            "http://localhost:99999",
            "unix:",
            "unix:///run/s",
            "http://h/a b",
            "http://h#x",
        ] {
            assert_eq!(refused(url, None).0, "store", "{url}");
        }
    }

    #[test]
    fn a_password_is_refused_and_shown_to_nobody() {
        for url in ["http://ada:geheim@host/x", "https://geheim@host", "http://ada:geheim@"] {
            let (option, reason) = refused(url, None);
            assert!(option == "store" && reason.contains("token_file") && !reason.contains("geheim"), "{reason}");
            let shown = format!("{:?}", Options::new(url));
            assert!(!shown.contains("geheim"), "{shown}");
        }
    }

    #[test]
    fn the_token_is_the_environments_unless_there_is_a_file_and_is_not_shown() {
        let with = |url: &str, token: &str| Options::from_url_and(url, Some(token.to_owned()), &KNOWN, |_| Ok(()));
        let from = |url: &str| with(url, "geheim");
        assert_eq!(from("https://h").expect("valid").token.as_deref(), Some("geheim"));
        assert_eq!(from("https://h?token_file=t").expect("valid").token, None);
        assert_eq!(with("https://h", "").expect("valid").token, None);
        let shown = format!("{:?}", from("https://h").expect("valid"));
        assert!(shown.contains("hidden") && !shown.contains("geheim"), "{shown}");
        let mut both = Options::new("https://h");
        (both.token, both.token_file) = (Some("geheim".to_owned()), Some("t".into()));
        assert!(matches!(both.validate(), Err(Error::InvalidOption { option, .. }) if option == "token_file"));
    }

    #[test]
    fn a_token_goes_to_another_machine_only_over_tls_or_if_that_is_said_to_be_safe() {
        for url in [
            "http://host",
            "http://10.0.0.1:7080/x",
            "http://localhost.example.org",
            "http://[2001:db8::1]",
            "http://host?token_file=t",
        ] {
            let (option, reason) = refused(url, Some("geheim"));
            assert!(option == "insecure" && reason.contains("https") && !reason.contains("geheim"), "{url}: {reason}");
        }
        for url in [
            "https://host",
            "http://localhost:7080",
            "http://LOCALHOST",
            "http://a.localhost",
            "http://127.0.0.9",
            "http://[::1]:1",
            "unix:/run/s",
            "http://host?insecure=true",
        ] {
            Options::from_url_and(url, Some("geheim".to_owned()), &KNOWN, |_| Ok(())).expect(url);
        }
        options("http://host");
    }
}
