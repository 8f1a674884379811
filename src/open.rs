use std::sync::Arc;

use eventstore_kv::{StoreOptions, StoreUrl, UrlOptions, memory};

use crate::{Error, EventStore, Result};

/// Opens the store that `url` names, as `scheme:path?option=value&option=value`; creates it if it is missing.
///
/// The scheme picks the backend: `memory:`, `lmdb:./data`, `lmdb:/var/lib/app/events?map_size=4GiB`. The path is taken
/// literally up to the first `?`. Each backend's options are the fields of its typed `Options`, which can be used
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
    let url: StoreUrl = url.parse()?;
    match url.scheme.as_str() {
        "memory" => open_memory(&url),
        #[cfg(feature = "lmdb")]
        backend_lmdb::NAME => Ok(Arc::new(backend_lmdb::open(backend_lmdb::Options::from_url(&url)?).await?)),
        #[cfg(not(feature = "lmdb"))]
        "lmdb" => Err(left_out("lmdb")),
        unknown => Err(Error::Unsupported {
            what: format!("the scheme {unknown:?} names no backend; there are memory and lmdb"),
        }),
    }
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

#[cfg(not(feature = "lmdb"))]
fn left_out(feature: &str) -> Error {
    Error::Unsupported {
        what: format!("this build leaves the {feature} backend out; build eventstore with the feature `{feature}`"),
    }
}
