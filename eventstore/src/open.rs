use std::sync::Arc;

use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, memory};

use crate::backend::EventStore;
use crate::{Error, Result, Store};

/// Does something with the backend that a URL names, under whatever name, if this build has it.
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

/// Opens the store that `url` names, as `scheme:path?option=value&option=value`; creates it if it is missing.
///
/// The scheme picks the backend: `memory:`, `lmdb:./data`, `rocksdb:/var/lib/app/events?block_cache=256MiB`. The path is
/// taken literally up to the first `?`. Each backend's options are the fields of its typed `Options`, which can be used
/// instead, with the backend's own `open`. Must be called inside a Tokio runtime; [`blocking::open`](crate::blocking::open) is for
/// programs without one.
///
/// `http://`, `https://` and `unix:` lead to the store of a server, `http://host:7080/stores/orders?token_file=…`, with the
/// feature `http`; `postgres://app@host/db?schema=orders` to one on PostgreSQL, with the feature `postgres`.
/// `gosync+http://host:8080/base?mirror=DIR` and `gosync+https://` lead to a server of Go Sync Kit, with the feature `http`: that
/// is weaker than other stores, as the module `gosync` of the crate `backend_http` says.
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
/// `Unsupported` for an unknown scheme, or for a backend that this build leaves out, which names the feature to enable.
/// `InvalidOption`, `Locked`, `Open`, `Corrupt` from the backend; `Forbidden` and `Unavailable` from a server.
pub async fn open(url: &str) -> Result<Store> {
    backend::open(url).await.map(Store::from)
}

/// As [`open`], but a store that is not there is an error: for those who only want to read, or have a path from somebody
/// who may have mistyped it.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_existing(url: &str) -> Result<Store> {
    backend::open_existing(url).await.map(Store::from)
}

/// Opens the store that `url` names to read it, and writes nothing there: not to a backup, nor to what lies on a medium that
/// cannot be written or is somebody else's. Others may read it as well, but nobody may write to it meanwhile, and appends and
/// collections are `Unsupported`. Of a server's store that is all: others may write to it.
///
/// Of LMDB and RocksDB the index is used where it is. Of fjall and sled it is copied into a temporary directory, which takes long
/// if it is large; so is one that is missing, damaged or far behind made again there.
///
/// # Errors
///
/// Those of [`open_existing`]; `Unsupported` for `memory:`.
pub async fn open_read_only(url: &str) -> Result<Store> {
    backend::open_read_only(url).await.map(Store::from)
}

/// The same functions for those who want the trait.
pub(crate) mod backend {
    use super::*;

    /// As [`eventstore::open`](crate::open), as the trait.
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

    /// As [`eventstore::open_existing`](crate::open_existing), as the trait.
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

    /// As [`eventstore::open_read_only`](crate::open_read_only), as the trait.
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

    /// Whether a URL names a store of an eventstore server: `http:`, `https:` or `unix:`.
    #[must_use]
    pub fn is_served(url: &str) -> bool {
        server_of(url) == Some(HTTP)
    }

    /// Whether a URL names the store of a server of Go Sync Kit: `gosync+http:` or `gosync+https:`.
    #[must_use]
    pub fn is_gosync(url: &str) -> bool {
        server_of(url) == Some(GOSYNC)
    }

    /// Whether a URL names a store on PostgreSQL: `postgres:` or `postgresql:`.
    #[must_use]
    pub fn is_postgres(url: &str) -> bool {
        server_of(url) == Some(POSTGRES)
    }

    /// Checks what can be checked of a URL without the store that it names: the scheme, the form and the options.
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

    /// A URL to be shown: without passwords and tokens, in whose place it has `(hidden)`.
    #[must_use]
    pub fn shown(url: &str) -> String {
        let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
        // Whatever is before the last @ may be a password, also where it is not written as it should be.
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

/// Whether the value of an option is for nobody to see. A name that is not written plainly may be any.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains('%') || matches!(name.as_str(), "password" | "sslpassword" | "token")
}

pub(crate) const MEMORY: &str = "memory";

/// The schemes that lead to a server, and their backends. Their URLs have forms of their own.
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

/// The backend of a URL that leads to a server.
fn server_of(url: &str) -> Option<&'static str> {
    let (scheme, _) = url.split_once(':')?;
    SERVERS.iter().find(|(of_server, _)| *of_server == scheme).map(|(_, backend)| *backend)
}

/// What a store is opened for.
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

/// Reads a URL that names files. Its scheme comes first: how to write a path better is no help with an engine that there is not.
pub(crate) fn parse(url: &str) -> Result<StoreUrl> {
    let of_server = |what: &str| Err(Error::Unsupported { what: what.to_owned() });
    match url.split_once(':') {
        Some(_) if matches!(server_of(url), Some(HTTP | GOSYNC)) => of_server(
            "the URL leads to a server, and this is done with the files of a store; do it on the server's machine, while the \
             server is stopped",
        ),
        Some(_) if server_of(url) == Some(POSTGRES) => of_server(
            "this is done with the files of a store, and one on PostgreSQL has none of its own; back the database up and \
             restore it with PostgreSQL's tools, or copy the store",
        ),
        Some((scheme, _)) if ENGINES.iter().all(|(engine, _)| *engine != scheme) => Err(no_backend(scheme)),
        _ => url.parse(),
    }
}

/// Why a scheme opens nothing in this build.
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
