//! An order service: what a program around an event store looks like. See `README.md`.

pub mod domain;
pub mod routes;
pub mod view;

use std::path::Path;

use eventstore::{BoxError, FileSnapshots, Running, SnapshotPolicy, Snapshots, Store, ViewProgress, lmdb};

use crate::view::View;

/// What the handlers of requests use.
#[derive(Clone)]
pub struct App {
    pub store: Store,
    pub snapshots: SnapshotPolicy,
    pub view: View,
    pub progress: ViewProgress,
}

impl App {
    /// Everything in one directory, which is made if it is missing.
    pub async fn open(directory: &Path) -> Result<(App, Running<View>), BoxError> {
        let store = Store::new(lmdb::open(lmdb::Options::new(directory.join("events"))).await?);
        let snapshots = FileSnapshots::open(directory.join("snapshots"))?;
        Ok(App::start(store, snapshots, View::open(Some(&directory.join("view.sqlite")))?))
    }

    /// On these, which tests have in memory.
    pub fn start(store: Store, snapshots: impl Snapshots + 'static, view: View) -> (App, Running<View>) {
        let snapshots = SnapshotPolicy::new(snapshots, 1).every(10); // 2 when `Order` or its `apply` has changed
        let running = store.project(view.clone()).name("orders").start();
        (App { store, snapshots, view, progress: running.progress() }, running)
    }
}
