//! The address of a kind of store, from which the commands create many stores, each with its own directory.

use std::path::Path;
use std::sync::Arc;

use conformance::Profile;
use eventstore::backend::{Error, EventStore, Result, engine_of, is_served};

/// The address of a kind of store: `scheme:directory?option=value`; `http://host:port/stores?option=value` for the
/// stores of a server, or `postgres://user@host/database?option=value` for those of a database.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) scheme: String,
    /// Empty if there is none.
    pub(crate) directory: String,
    options: String,
}

impl Address {
    /// Parses an address. The error is for people.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let (address, options) = text.split_once('?').unwrap_or((text, ""));
        let Some((scheme, directory)) = address.split_once(':') else {
            return Err(format!("{address:?} is not a store; write it as scheme:directory, such as lmdb:"));
        };
        let [scheme, directory, options] = [scheme, directory, options].map(str::to_owned);
        Ok(Address { scheme, directory, options })
    }

    /// Whether such a store has no files.
    pub(crate) fn is_memory(&self) -> bool {
        self.scheme == "memory"
    }

    /// Whether such a store is on a server, which creates it under the given name.
    pub(crate) fn is_on_server(&self) -> bool {
        self.is_in_database() || is_served(&format!("{}:", self.scheme))
    }

    fn is_in_database(&self) -> bool {
        ["postgres", "postgresql"].contains(&self.scheme.as_str())
    }

    /// The capabilities of such a store.
    pub(crate) fn profile(&self) -> Profile {
        match self.scheme.as_str() {
            _ if self.is_in_database() => Profile::persistent().without_locking().without_read_only().without_backup(),
            // The store belongs to the server, which any number of clients may use.
            _ if self.is_on_server() => Profile::persistent().without_locking().without_read_only(),
            "memory" => Profile::in_memory(),
            "lmdb" => Profile::persistent().trusting_its_files(),
            "fjall" | "sled" => Profile::persistent().without_clocks_before_1970(),
            _ => Profile::persistent(),
        }
    }

    /// Opens such a store in a directory.
    pub(crate) fn open(&self, directory: &Path) -> impl Future<Output = Result<Arc<dyn EventStore>>> + use<> {
        let url = self.url(directory);
        // The store is on the server, but its directory must not be empty, like that of any store.
        let sign = (self.is_on_server() && engine_of(directory).is_err()).then(|| directory.to_owned());
        async move {
            let store = eventstore::backend::open(&url).await?;
            if let Some(directory) = sign {
                let written =
                    std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(directory.join("served"), &url));
                written.map_err(|error| Error::engine("mark the directory of a store on a server", error))?;
            }
            Ok(store)
        }
    }

    /// Opens such a store in a directory to read only.
    #[allow(dead_code, reason = "one of the two commands does")]
    pub(crate) fn open_read_only(&self, directory: &Path) -> impl Future<Output = Result<Arc<dyn EventStore>>> + use<> {
        let url = self.url(directory);
        async move { eventstore::backend::open_read_only(&url).await }
    }

    /// The name of the store on the server for this directory: the same directory always gives the same name.
    fn name(&self, directory: &Path) -> String {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        // Temporary directories have unique names. A restarted process finds its store by the directory.
        directory.hash(&mut hasher);
        format!("conformance_{:016x}", hasher.finish())
    }

    fn url(&self, directory: &Path) -> String {
        if self.is_in_database() {
            return format!("{}:{}?{}&schema={}", self.scheme, self.directory, self.options, self.name(directory));
        }
        let place = match self.is_memory() {
            true => String::new(),
            // A backup from a server is in this directory, and opens with the server's engine.
            false
                if self.is_on_server()
                    && let Ok(engine) = engine_of(directory) =>
            {
                return format!("{engine}:{}", directory.display());
            }
            false if self.is_on_server() => {
                format!("{}/{}", self.directory.trim_end_matches('/'), self.name(directory))
            }
            false => directory.display().to_string(),
        };
        format!("{}:{place}?{}", self.scheme, self.options)
    }
}
