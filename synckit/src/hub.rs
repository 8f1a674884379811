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
            Hub::Url { said, .. } => f.write_str(&backend::shown(said)),
            Hub::Missing => f.write_str("no hub"),
        }
    }
}

impl Hub {
    /// The hub with this address, for the replica in this directory.
    pub(crate) fn url(said: String, directory: &Path) -> Self {
        let mut url = said.clone();
        // Without retries: syncing has pauses of its own, and reports that the hub is away.
        if backend::is_served(&url) || backend::is_gosync(&url) {
            add_option(&mut url, "retry_for", || "0s".to_owned());
        }
        if backend::is_served(&url) {
            add_option(&mut url, "retry_waits", || "false".to_owned());
        }
        if backend::is_postgres(&url) {
            // An idle connection may have ended meanwhile.
            add_option(&mut url, "retry_for", || "2s".to_owned());
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
            Hub::Url { url, open, .. } => {
                let mut open = open.lock().await;
                if let Some(store) = &*open {
                    return Ok(store.clone());
                }
                let store = backend::open_existing(url).await;
                let store = store.map_err(|source| Error::Hub { hub: self.to_string(), source })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The URL with which this hub is opened.
    fn opened(said: &str) -> String {
        match Hub::url(said.to_owned(), Path::new("/replica")) {
            Hub::Url { url, .. } => url,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_hub_is_asked_once_unless_its_address_says_otherwise() {
        for (said, url) in [
            ("http://host", "http://host?retry_for=0s&retry_waits=false"),
            ("http://host?retry_for=9s", "http://host?retry_for=9s&retry_waits=false"),
            ("unix:/run/s?retry_waits=true&read_only", "unix:/run/s?retry_waits=true&read_only&retry_for=0s"),
            ("gosync+http://host", "gosync+http://host?retry_for=0s&mirror=%2Freplica%2Fmirror"),
            ("postgres://host/shop?schema=a", "postgres://host/shop?schema=a&retry_for=2s"),
            ("postgres://host/shop?retry_for=9s", "postgres://host/shop?retry_for=9s"),
            ("lmdb:./hub", "lmdb:./hub"),
        ] {
            assert_eq!(opened(said), url);
        }
    }

    #[test]
    fn what_is_secret_in_an_address_is_not_shown() {
        let hub = Hub::url("postgres://app:geheim@host/shop?password=geheim".to_owned(), Path::new("/replica"));
        let shown = format!("{hub} {hub:?}");
        assert!(shown.contains("host") && shown.contains("/shop") && !shown.contains("geheim"), "{shown}");
    }
}
