//! Common to all backends: the functions that open their stores.

/// Defines the functions of a backend that open and repair its stores: `open`, `open_blocking`, `open_read_only`,
/// `open_read_only_blocking` and `repair`. The engine's options must have the fields `path`, `create_if_missing` and
/// `store`, and a method `validate`.
#[macro_export]
macro_rules! backend {
    ($Store:ident = $Engine:ident) => {
        /// Opens or creates a store. Must be called inside a Tokio runtime; [`open_blocking`] needs none.
        ///
        /// # Errors
        ///
        /// `InvalidOption`, `Locked`, `Open`, `Unsupported`, `Corrupt`.
        pub async fn open(options: Options) -> $crate::Result<$Store> {
            $crate::blocking(move || open_blocking(&options)).await
        }

        /// Like [`open`], but blocks the thread.
        ///
        /// # Errors
        ///
        /// Those of [`open`].
        pub fn open_blocking(options: &Options) -> $crate::Result<$Store> {
            options.validate()?;
            $crate::KvStore::open(&options.path, options.create_if_missing, options.clone(), options.store.clone())
        }

        /// Opens a store for reading and writes nothing. Others may read it at the same time, but nobody may write to it. Must
        /// be called inside a Tokio runtime; [`open_read_only_blocking`] needs none.
        ///
        /// # Errors
        ///
        /// Those of [`open`], and `Open` if there is no store.
        pub async fn open_read_only(options: Options) -> $crate::Result<$Store> {
            $crate::blocking(move || open_read_only_blocking(&options)).await
        }

        /// Like [`open_read_only`], but blocks the thread.
        ///
        /// # Errors
        ///
        /// Those of [`open_read_only`].
        pub fn open_read_only_blocking(options: &Options) -> $crate::Result<$Store> {
            options.validate()?;
            $crate::KvStore::open_read_only(&options.path, options.clone(), options.store.clone())
        }

        /// Rebuilds the index of a closed store from its log, and accepts a log that has lost its end. Returns what was done.
        /// Blocks the thread.
        ///
        /// # Errors
        ///
        /// `Open` if there is no store; `Locked`; `Corrupt` if the log is damaged; those of the context.
        pub fn repair(ctx: &$crate::Context, options: &Options) -> $crate::Result<Vec<String>> {
            options.validate()?;
            $crate::repair::<$Engine>(ctx, &options.path, options, &options.store)
        }
    };
}

/// For [`backend!`]: opens a store on a thread that may block.
#[doc(hidden)]
pub async fn blocking<T: Send + 'static>(
    open: impl FnOnce() -> eventstore_api::Result<T> + Send + 'static,
) -> eventstore_api::Result<T> {
    let opening = tokio::task::spawn_blocking(open);
    opening.await.map_err(|error| eventstore_api::Error::engine("open the store", error))?
}
