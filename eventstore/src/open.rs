use std::sync::Arc;

use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, memory};

use crate::backend::EventStore;
use crate::{Error, Result, Store};

/// Expands an expression with the backend for an engine, if this build has it.
macro_rules! with_engine {
    ($url:expr, $engine:ident => $work:expr) => {
        match $url.scheme.as_str() {
            #[cfg(feature = "lmdb")]
            backend_lmdb::NAME => {
                use backend_lmdb as $engine;
                $work
            }
            #[cfg(feature = "rocksdb")]
            backend_rocksdb::NAME => {
                use backend_rocksdb as $engine;
                $work
            }
            #[cfg(feature = "fjall")]
            backend_fjall::NAME => {
                use backend_fjall as $engine;
                $work
            }
            #[cfg(feature = "sled")]
            backend_sled::NAME => {
                use backend_sled as $engine;
                $work
            }
            other => Err($crate::open::no_backend(other)),
        }
    };
}
pub(crate) use with_engine;

/// Opens the store that `url` names, as `scheme:path?option=value&option=value`. Creates it if it is missing.
///
/// The scheme selects the backend: `memory:`, `lmdb:./data`, `rocksdb:/var/lib/app/events?block_cache=256MiB`. The path
/// is taken literally up to the first `?`. The options are the fields of the backend's typed `Options`; these can be
/// used instead, with the backend's own `open`. Must be called inside a Tokio runtime. For programs without one, use
/// [`blocking::open`](crate::blocking::open).
///
/// `http://`, `https://` and `unix:` open the store of a server, such as `http://host:7080/stores/orders?token_file=…`,
/// with the feature `http`. `postgres://app@host/db?schema=orders` opens one on PostgreSQL, with the feature
/// `postgres`. `gosync+http://host:8080/base?mirror=DIR` and `gosync+https://` use a server of Go Sync Kit, with the
/// feature `http`. It gives weaker guarantees than other stores; see the module `gosync` of the crate `backend_http`.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let store = eventstore::open("memory:").await?;
/// # Ok::<(), eventstore::Error>(())
/// # }).unwrap();
/// ```
///
/// # Errors
///
/// `Unsupported` for an unknown scheme, or for a backend that this build does not have; the error names the feature to
/// enable. `InvalidOption`, `Locked`, `Open`, `Corrupt` from the backend; `Forbidden` and `Unavailable` from a server.
pub async fn open(url: &str) -> Result<Store> {
    backend::open(url).await.map(Store::from)
}

/// Like [`open`], but a missing store is an error. For programs that only read, or that take a path which may be
/// mistyped.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_existing(url: &str) -> Result<Store> {
    backend::open_existing(url).await.map(Store::from)
}

/// Opens the store that `url` names for reading, and writes nothing there. It suits backups, read-only media and the
/// stores of others. Others may read the store at the same time, but nobody may write to it; appends and garbage
/// collections are `Unsupported`. For a store on a server, only this handle is restricted: others may write to it.
///
/// LMDB and RocksDB use the index where it is. The index of fjall and sled is copied into a temporary directory, which
/// takes long if it is large. An index that is missing, damaged or far behind is rebuilt in a temporary directory.
///
/// # Errors
///
/// Those of [`open_existing`]; `Unsupported` for `memory:`.
pub async fn open_read_only(url: &str) -> Result<Store> {
    backend::open_read_only(url).await.map(Store::from)
}

/// The same functions, returning the trait object.
pub(crate) mod backend {
    use super::*;

    /// Like [`eventstore::open`](crate::open), returning the trait object.
    ///
    /// # Errors
    ///
    /// Those of [`eventstore::open`](crate::open).
    pub async fn open(url: &str) -> Result<Arc<dyn EventStore>> {
        if let Some(server) = server_of(url) {
            return open_remote(server, url, To::Make).await;
        }
        open_url(&parse(url)?).await
    }

    /// Like [`eventstore::open_existing`](crate::open_existing), returning the trait object.
    ///
    /// # Errors
    ///
    /// Those of [`eventstore::open_existing`](crate::open_existing).
    pub async fn open_existing(url: &str) -> Result<Arc<dyn EventStore>> {
        const OPTION: &str = "create_if_missing";
        if let Some(server) = server_of(url) {
            return open_remote(server, url, To::Find).await;
        }
        let mut url = parse(url)?;
        if url.scheme != MEMORY && url.options.iter().all(|(name, _)| name != OPTION) {
            url.options.push((OPTION.to_owned(), false.to_string()));
        }
        open_url(&url).await
    }

    /// Like [`eventstore::open_read_only`](crate::open_read_only), returning the trait object.
    ///
    /// # Errors
    ///
    /// Those of [`eventstore::open_read_only`](crate::open_read_only).
    pub async fn open_read_only(url: &str) -> Result<Arc<dyn EventStore>> {
        if let Some(server) = server_of(url) {
            return open_remote(server, url, To::Read).await;
        }
        let url = &parse(url)?;
        if url.scheme == MEMORY {
            let what = "a memory store is always empty when it is opened; open it for writing".to_owned();
            return Err(Error::Unsupported { what });
        }
        with_engine!(url, engine => Ok(Arc::new(engine::open_read_only(engine::Options::from_url(url)?).await?)))
    }

    /// Whether a URL names a store on an eventstore server: `http:`, `https:` or `unix:`.
    #[must_use]
    pub fn is_served(url: &str) -> bool {
        server_of(url) == Some(HTTP)
    }

    /// Whether a URL names a store on a server of Go Sync Kit: `gosync+http:` or `gosync+https:`.
    #[must_use]
    pub fn is_gosync(url: &str) -> bool {
        server_of(url) == Some(GOSYNC)
    }

    /// Whether a URL names a store on PostgreSQL: `postgres:` or `postgresql:`.
    #[must_use]
    pub fn is_postgres(url: &str) -> bool {
        server_of(url) == Some(POSTGRES)
    }

    /// Checks a URL without opening the store: its scheme, its form and its options.
    ///
    /// # Errors
    ///
    /// `Unsupported` and `InvalidOption`, as [`eventstore::open`](crate::open) has them.
    pub fn check_url(url: &str) -> Result<()> {
        match server_of(url) {
            #[cfg(feature = "http")]
            Some(HTTP) => backend_http::Options::from_url(url).map(drop),
            #[cfg(feature = "http")]
            Some(GOSYNC) => backend_http::gosync::Options::from_url(url).map(drop),
            #[cfg(not(feature = "http"))]
            Some(GOSYNC) => Err(no_backend(HTTP)),
            #[cfg(feature = "postgres")]
            Some(POSTGRES) => backend_postgres::Options::from_url(url).map(drop),
            Some(other) => Err(no_backend(other)),
            None => {
                let url = &parse(url)?;
                if url.scheme == MEMORY {
                    return memory_options(url).map(drop);
                }
                with_engine!(url, engine => engine::Options::from_url(url).map(drop))
            }
        }
    }

    /// The URL in a form for people and logs: `(hidden)` stands for passwords and tokens.
    #[must_use]
    pub fn shown(url: &str) -> String {
        let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
        // Everything before the last @ may be a password, even if it is not encoded as it should be.
        let rest = match rest.rsplit_once('@').map(|(user, place)| (user.split_once(':'), place)) {
            Some((Some((user, _)), place)) => format!("{user}:(hidden)@{place}"),
            _ => rest.to_owned(),
        };
        let Some((place, options)) = rest.split_once('?') else { return format!("{scheme}://{rest}") };
        let redacted = |option: &str| match option.split_once('=') {
            Some((name, _)) if is_secret(name) => format!("{name}=(hidden)"),
            _ => option.to_owned(),
        };
        let options: Vec<_> = options.split('&').map(redacted).collect();
        format!("{scheme}://{place}?{}", options.join("&"))
    }
}

/// Whether the value of an option is secret. An encoded name may be any.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains('%') || matches!(name.as_str(), "password" | "sslpassword" | "token")
}

pub(crate) const MEMORY: &str = "memory";

/// The schemes of servers, and their backends. Their URLs have forms of their own.
const SERVERS: [(&str, &str); 7] = [
    (HTTP, HTTP),
    ("https", HTTP),
    ("unix", HTTP),
    ("gosync+http", GOSYNC),
    ("gosync+https", GOSYNC),
    (POSTGRES, POSTGRES),
    ("postgresql", POSTGRES),
];
const HTTP: &str = "http";
const GOSYNC: &str = "gosync";
const POSTGRES: &str = "postgres";

/// The backend for a URL of a server.
fn server_of(url: &str) -> Option<&'static str> {
    let (scheme, _) = url.split_once(':')?;
    SERVERS.iter().find(|(of_server, _)| *of_server == scheme).map(|(_, backend)| *backend)
}

/// The purpose of opening a store.
enum To {
    Make,
    Find,
    Read,
}

#[allow(unused_variables, reason = "a build may have no backend with a server")]
async fn open_remote(server: &str, url: &str, to: To) -> Result<Arc<dyn EventStore>> {
    #[cfg(any(feature = "http", feature = "postgres"))]
    macro_rules! open {
        ($backend:ident) => {{
            let options = $backend::Options::from_url(url)?;
            Ok(Arc::new(match to {
                To::Make => $backend::open(options).await?,
                To::Find => $backend::open_existing(options).await?,
                To::Read => $backend::open_read_only(options).await?,
            }))
        }};
    }
    match server {
        #[cfg(feature = "http")]
        HTTP => open!(backend_http),
        #[cfg(feature = "http")]
        GOSYNC => crate::gosync::open(url, matches!(to, To::Read)).await,
        #[cfg(not(feature = "http"))]
        GOSYNC => Err(no_backend(HTTP)),
        #[cfg(feature = "postgres")]
        POSTGRES => open!(backend_postgres),
        other => Err(no_backend(other)),
    }
}

async fn open_url(url: &StoreUrl) -> Result<Arc<dyn EventStore>> {
    if url.scheme == MEMORY {
        return open_memory(url);
    }
    with_engine!(url, engine => Ok(Arc::new(engine::open(engine::Options::from_url(url)?).await?)))
}

/// The engines, and whether this build has them.
const ENGINES: [(&str, bool); 7] = [
    (MEMORY, true),
    ("lmdb", cfg!(feature = "lmdb")),
    ("rocksdb", cfg!(feature = "rocksdb")),
    ("fjall", cfg!(feature = "fjall")),
    ("sled", cfg!(feature = "sled")),
    (HTTP, cfg!(feature = "http")),
    (POSTGRES, cfg!(feature = "postgres")),
];

/// Parses a URL that names files. The scheme is checked first: advice on the path is no help if the engine is missing.
pub(crate) fn parse(url: &str) -> Result<StoreUrl> {
    let of_server = |what: &str| Err(Error::Unsupported { what: what.to_owned() });
    match url.split_once(':') {
        Some(_) if matches!(server_of(url), Some(HTTP | GOSYNC)) => of_server(
            "the URL names a server, but this needs the files of a store; run it on the server's machine while the \
             server is stopped",
        ),
        Some(_) if server_of(url) == Some(POSTGRES) => of_server(
            "this needs the files of a store, and a store on PostgreSQL has none; back up and restore the database \
             with PostgreSQL's tools, or copy the store",
        ),
        Some((scheme, _)) if ENGINES.iter().all(|(engine, _)| *engine != scheme) => Err(no_backend(scheme)),
        _ => url.parse(),
    }
}

/// The error for a scheme that this build cannot open.
pub(crate) fn no_backend(scheme: &str) -> Error {
    let names = |are_there: bool| -> Vec<&str> {
        ENGINES.iter().filter(|(_, is_there)| *is_there == are_there).map(|(engine, _)| *engine).collect()
    };
    let (there, left_out) = (names(true).join(", "), names(false));
    let what = if left_out.contains(&scheme) {
        format!(
            "this build does not include the {scheme} backend; build with the feature `{scheme}` (cargo build --features \
             {scheme})"
        )
    } else if left_out.is_empty() {
        format!("{scheme:?} is not a known engine; this library has {there}")
    } else {
        format!(
            "{scheme:?} is not a known engine; this build has {there}; others need a feature: {}",
            left_out.join(", ")
        )
    };
    Error::Unsupported { what }
}

fn open_memory(url: &StoreUrl) -> Result<Arc<dyn EventStore>> {
    Ok(Arc::new(memory::open(memory_options(url)?)?))
}

fn memory_options(url: &StoreUrl) -> Result<StoreOptions> {
    if !url.path.as_os_str().is_empty() {
        return Err(Error::InvalidOption {
            option: "store".to_owned(),
            reason: "a memory store has no path; write memory:".to_owned(),
        });
    }
    let mut options = StoreOptions::default();
    let mut given = UrlOptions::new(url);
    options.take_from(&mut given)?;
    given.finish()?;
    Ok(options)
}
