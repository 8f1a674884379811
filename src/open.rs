use std::sync::Arc;

use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, memory};

use crate::{Error, EventStore, Result};

/// Opens the store that `url` names, as `scheme:path?option=value&option=value`; creates it if it is missing.
///
/// The scheme picks the backend: `memory:`, `lmdb:./data`, `rocksdb:/var/lib/app/events?block_cache=256MiB`. The path is
/// taken literally up to the first `?`. Each backend's options are the fields of its typed `Options`, which can be used
/// instead, with the backend's own `open`. Must be called inside a Tokio runtime.
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
/// `InvalidOption`, `Locked`, `Open`, `Corrupt` from the backend.
pub async fn open(url: &str) -> Result<Arc<dyn EventStore>> {
    open_url(&parse(url)?).await
}

/// As [`open`], but a store that is not there is an error: for those who only want to read, or have a path from somebody
/// who may have mistyped it.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_existing(url: &str) -> Result<Arc<dyn EventStore>> {
    const OPTION: &str = "create_if_missing";
    let mut url = parse(url)?;
    if url.scheme != MEMORY && url.options.iter().all(|(name, _)| name != OPTION) {
        url.options.push((OPTION.to_owned(), false.to_string()));
    }
    open_url(&url).await
}

/// Opens the store that `url` names to read it, and writes nothing there: not to a backup, nor to what lies on a medium that
/// cannot be written or is somebody else's. Others may read it as well, but nobody may write to it meanwhile, and appends and
/// collections are `Unsupported`.
///
/// Of LMDB and RocksDB the index is used where it is. Of fjall and sled it is copied into a temporary directory, which takes long
/// if it is large; so is one that is missing, damaged or far behind made again there.
///
/// # Errors
///
/// Those of [`open_existing`]; `Unsupported` for `memory:`.
pub async fn open_read_only(url: &str) -> Result<Arc<dyn EventStore>> {
    let url = &parse(url)?;
    match url.scheme.as_str() {
        MEMORY => {
            Err(Error::Unsupported { what: "a store in memory has nothing to be read when it is opened".to_owned() })
        }
        #[cfg(feature = "lmdb")]
        backend_lmdb::NAME => Ok(Arc::new(backend_lmdb::open_read_only(backend_lmdb::Options::from_url(url)?).await?)),
        #[cfg(feature = "rocksdb")]
        backend_rocksdb::NAME => {
            Ok(Arc::new(backend_rocksdb::open_read_only(backend_rocksdb::Options::from_url(url)?).await?))
        }
        #[cfg(feature = "fjall")]
        backend_fjall::NAME => {
            Ok(Arc::new(backend_fjall::open_read_only(backend_fjall::Options::from_url(url)?).await?))
        }
        #[cfg(feature = "sled")]
        backend_sled::NAME => Ok(Arc::new(backend_sled::open_read_only(backend_sled::Options::from_url(url)?).await?)),
        other => Err(no_backend(other)),
    }
}

const MEMORY: &str = "memory";

async fn open_url(url: &StoreUrl) -> Result<Arc<dyn EventStore>> {
    match url.scheme.as_str() {
        MEMORY => open_memory(url),
        #[cfg(feature = "lmdb")]
        backend_lmdb::NAME => Ok(Arc::new(backend_lmdb::open(backend_lmdb::Options::from_url(url)?).await?)),
        #[cfg(feature = "rocksdb")]
        backend_rocksdb::NAME => Ok(Arc::new(backend_rocksdb::open(backend_rocksdb::Options::from_url(url)?).await?)),
        #[cfg(feature = "fjall")]
        backend_fjall::NAME => Ok(Arc::new(backend_fjall::open(backend_fjall::Options::from_url(url)?).await?)),
        #[cfg(feature = "sled")]
        backend_sled::NAME => Ok(Arc::new(backend_sled::open(backend_sled::Options::from_url(url)?).await?)),
        other => Err(no_backend(other)),
    }
}

/// The engines, and whether this build has them.
const ENGINES: [(&str, bool); 5] = [
    (MEMORY, true),
    ("lmdb", cfg!(feature = "lmdb")),
    ("rocksdb", cfg!(feature = "rocksdb")),
    ("fjall", cfg!(feature = "fjall")),
    ("sled", cfg!(feature = "sled")),
];

/// Reads a URL. Its scheme comes first: how to write a path better is no help with an engine that there is not.
pub(crate) fn parse(url: &str) -> Result<StoreUrl> {
    match url.split_once(':') {
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
            "this build leaves the {scheme} backend out; build eventstore with the feature `{scheme}` (cargo build \
             --features {scheme})"
        )
    } else if left_out.is_empty() {
        format!("{scheme:?} is no engine of this library; it has {there}")
    } else {
        format!(
            "{scheme:?} is no engine of this library; this build has {there}, and others are features: {}",
            left_out.join(", ")
        )
    };
    Error::Unsupported { what }
}

fn open_memory(url: &StoreUrl) -> Result<Arc<dyn EventStore>> {
    if !url.path.as_os_str().is_empty() {
        return Err(Error::InvalidOption {
            option: "store".to_owned(),
            reason: "a store in memory has no path; write memory:".to_owned(),
        });
    }
    let mut options = StoreOptions::default();
    let mut given = UrlOptions::new(url);
    options.take_from(&mut given)?;
    given.finish()?;
    Ok(Arc::new(memory::open(options)?))
}
