//! The hub of a replica.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use eventstore::backend::{self, Event, EventStore};
use tokio::sync::Mutex;

use crate::core::SameContent;
use crate::error::{Error, Result};

/// The directory of the mirror of a hub of Go Sync Kit, inside that of the replica.
const MIRROR: &str = "mirror";

/// The hub of a replica.
pub(crate) enum Hub {
    /// A store in this process.
    Store(Arc<dyn EventStore>),
    /// A store that is opened on first use.
    Url {
        /// Its address, as given by the user.
        said: String,
        /// The address with added options.
        url: String,
        open: Mutex<Option<Arc<dyn EventStore>>>,
    },
    /// No hub is known.
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
            Hub::Url { said, .. } => f.write_str(said),
            Hub::Missing => f.write_str("no hub"),
        }
    }
}

impl Hub {
    /// The hub with this address, for the replica in this directory.
    pub(crate) fn url(said: String, directory: &Path) -> Self {
        let mut url = said.clone();
        if backend::is_served(&url) || backend::is_gosync(&url) {
            // Without retries: syncing has pauses of its own.
            add_option(&mut url, "retry_for", || "0s".to_owned());
        }
        if backend::is_gosync(&url) {
            add_option(&mut url, "mirror", || {
                let path = directory.join(MIRROR);
                form_urlencoded::byte_serialize(path.as_os_str().as_encoded_bytes()).collect()
            });
        }
        Hub::Url { said, url, open: Mutex::new(None) }
    }

    /// How events of the hub are compared with own ones.
    pub(crate) fn same_content(&self) -> SameContent {
        match self {
            #[cfg(feature = "http")]
            Hub::Url { url, .. } if backend::is_gosync(url) => eventstore_wire::gosync::is_same,
            _ => Event::eq,
        }
    }

    /// The store. The first call opens it.
    pub(crate) async fn get(&self) -> Result<Arc<dyn EventStore>> {
        match self {
            Hub::Store(store) => Ok(store.clone()),
            Hub::Missing => {
                let what = "this replica has no hub; name one when it is opened".to_owned();
                Err(eventstore_api::Error::Unsupported { what }.into())
            }
            Hub::Url { said, url, open } => {
                let mut open = open.lock().await;
                if let Some(store) = &*open {
                    return Ok(store.clone());
                }
                let store = backend::open_existing(url).await;
                let store = store.map_err(|source| Error::Hub { hub: said.clone(), source })?;
                *open = Some(store.clone());
                Ok(store)
            }
        }
    }

    /// Closes the store, if it was opened here. The next call opens it again.
    pub(crate) async fn forget(&self) {
        if let Hub::Url { open, .. } = self
            && let Some(store) = open.lock().await.take()
            && let Err(error) = store.close().await
        {
            tracing::debug!(%error, hub = %self, "the hub was not closed cleanly");
        }
    }
}

/// Adds an option to an address, unless it is present.
fn add_option(url: &mut String, name: &str, value: impl FnOnce() -> String) {
    let options = url.split_once('?').map(|(_, options)| options);
    let is_there =
        options.is_some_and(|options| options.split('&').any(|option| option.split('=').next() == Some(name)));
    if !is_there {
        url.push(if options.is_some() { '&' } else { '?' });
        url.push_str(&format!("{name}={}", value()));
    }
}
