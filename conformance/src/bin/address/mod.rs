//! The address of a store, under which the commands make many: each with a directory of its own.

use std::path::Path;
use std::sync::Arc;

use conformance::Profile;
use eventstore::backend::{EventStore, Result};

/// A store's address: `scheme:directory?option=value`.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) scheme: String,
    /// Empty if there is none.
    pub(crate) directory: String,
    options: String,
}

impl Address {
    /// Reads an address; what is wrong with it is for the terminal.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let (address, options) = text.split_once('?').unwrap_or((text, ""));
        let Some((scheme, directory)) = address.split_once(':') else {
            return Err(format!("{address:?} is not a store; write it as scheme:directory, such as lmdb:"));
        };
        Ok(Address { scheme: scheme.to_owned(), directory: directory.to_owned(), options: options.to_owned() })
    }

    /// Whether such a store has no files.
    pub(crate) fn is_memory(&self) -> bool {
        self.scheme == "memory"
    }

    /// What such a store can do.
    pub(crate) fn profile(&self) -> Profile {
        match self.scheme.as_str() {
            "memory" => Profile::in_memory(),
            "lmdb" => Profile::persistent().trusting_its_files(),
            "fjall" | "sled" => Profile::persistent().without_clocks_before_1970(),
            _ => Profile::persistent(),
        }
    }

    /// Opens such a store in a directory.
    pub(crate) fn open(&self, directory: &Path) -> impl Future<Output = Result<Arc<dyn EventStore>>> + use<> {
        let url = self.url(directory);
        async move { eventstore::backend::open(&url).await }
    }

    /// Opens such a store in a directory to read only.
    #[allow(dead_code, reason = "one of the two commands does")]
    pub(crate) fn open_read_only(&self, directory: &Path) -> impl Future<Output = Result<Arc<dyn EventStore>>> + use<> {
        let url = self.url(directory);
        async move { eventstore::backend::open_read_only(&url).await }
    }

    fn url(&self, directory: &Path) -> String {
        let place = if self.is_memory() { String::new() } else { directory.display().to_string() };
        format!("{}:{place}?{}", self.scheme, self.options)
    }
}
