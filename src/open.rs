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
    open_url(&url.parse()?).await
}

/// As [`open`], but a store that is not there is an error: for those who only want to read, or have a path from somebody
/// who may have mistyped it.
///
/// # Errors
///
/// Those of [`open`], and `Open` if there is no store.
pub async fn open_existing(url: &str) -> Result<Arc<dyn EventStore>> {
    const OPTION: &str = "create_if_missing";
    let mut url: StoreUrl = url.parse()?;
    if url.scheme != MEMORY && url.options.iter().all(|(name, _)| name != OPTION) {
        url.options.push((OPTION.to_owned(), false.to_string()));
    }
    open_url(&url).await
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

/// Why a scheme opens nothing in this build.
pub(crate) fn no_backend(scheme: &str) -> Error {
    let what = match scheme {
        "lmdb" | "rocksdb" | "fjall" | "sled" => format!(
            "this build leaves the {scheme} backend out; build eventstore with the feature `{scheme}` (cargo build \
             --features {scheme})"
        ),
        unknown => format!("the scheme {unknown:?} names no backend; there are memory, lmdb, rocksdb, fjall and sled"),
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
