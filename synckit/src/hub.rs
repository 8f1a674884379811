//! The hub of a replica.

use std::fmt;
use std::sync::Arc;

use eventstore::backend::{self, EventStore};
use tokio::sync::Mutex;

use crate::error::{Error, Result};

/// Where the hub is.
pub(crate) enum Hub {
    /// A store of the same process.
    Store(Arc<dyn EventStore>),
    /// A store that is opened when it is needed, by its address.
    Url(String, Mutex<Option<Arc<dyn EventStore>>>),
    /// Nobody said it.
    Missing,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hub({self})")
    }
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hub::Store(_) => f.write_str("the hub"),
            Hub::Url(url, _) => f.write_str(url),
            Hub::Missing => f.write_str("no hub"),
        }
    }
}

impl Hub {
    pub(crate) fn url(url: String) -> Self {
        Hub::Url(url, Mutex::new(None))
    }

    /// The store. It is opened by the first call.
    pub(crate) async fn get(&self) -> Result<Arc<dyn EventStore>> {
        match self {
            Hub::Store(store) => Ok(store.clone()),
            Hub::Missing => {
                let what = "this replica has no hub; name one when it is opened".to_owned();
                Err(eventstore_api::Error::Unsupported { what }.into())
            }
            Hub::Url(url, open) => {
                let mut open = open.lock().await;
                if let Some(store) = &*open {
                    return Ok(store.clone());
                }
                let store = backend::open_existing(&at_once(url)).await;
                let store = store.map_err(|source| Error::Hub { hub: url.clone(), source })?;
                *open = Some(store.clone());
                Ok(store)
            }
        }
    }

    /// The next call opens it anew.
    pub(crate) async fn forget(&self) {
        if let Hub::Url(_, open) = self {
            open.lock().await.take();
        }
    }
}

/// A served store is not asked again and again: syncing has pauses of its own.
fn at_once(url: &str) -> String {
    const OPTION: &str = "retry_for";
    if !backend::is_served(url) || url.contains(OPTION) {
        return url.to_owned();
    }
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{OPTION}=0s")
}
