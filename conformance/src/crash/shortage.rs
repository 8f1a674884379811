//! A lack of file descriptors, and how an intact store may react.

use std::fs::File;

use eventstore_api::{Error, EventStore, LoadOptions, RecordedEvent};

use super::audit::Known;
use super::witness::Witness;
use crate::Profile;
use crate::env::Store;
use crate::events::background;
use crate::failure::{Checked, Failure};
use crate::reading::pages_of;

/// More than any store needs for an opening or a call.
pub(crate) const MOST: usize = 100;

/// File descriptors that are taken away from this process.
pub(crate) struct UsedUp(#[allow(dead_code, reason = "they are held")] Vec<File>);

impl UsedUp {
    /// Takes all except this many.
    pub(crate) fn all_but(left: usize) -> Self {
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.truncate(files.len().saturating_sub(left));
        UsedUp(files)
    }
}

/// Reads in every way, and fails if an intact store is reported as damaged or returns anything wrong. Returns whether
/// there were enough descriptors for everything.
pub(crate) async fn read(store: &Store, profile: &Profile, witness: &Witness, known: &Known) -> Checked<bool> {
    let mut was_enough = true;
    let mut fails = |error: Error, what: &str| -> Checked {
        was_enough = false;
        is_no_damage(&error, what)
    };
    if profile.verifies() {
        match store.verify(&background()).await {
            Ok(report) => expect_eq!(report.findings, [], "what `verify` finds with too few file descriptors (M3)"),
            Err(error) => fails(error, "`verify`")?,
        }
    }
    let mut check = |event: &RecordedEvent| known.find(&event.event).map(drop);
    let (mut next, mut count) = (Some(LoadOptions::all()), 0);
    while let Some(options) = next.take() {
        match store.load_page(&background(), &options, pages_of(16)).await {
            Ok(page) => {
                page.events.iter().try_for_each(&mut check)?;
                count += page.events.len() as u64;
                next = page.next;
                ensure!(next.is_some() || count >= witness.seen, "a load gives {count} events of {}", witness.seen);
            }
            Err(error) => fails(error, "a load")?,
        }
    }
    for id in known.acknowledged(witness).step_by(7) {
        match store.get(&background(), id).await {
            Ok(event) => check(&event)?,
            Err(error) => fails(error, "`get`")?,
        }
    }
    for aggregate in 0..9 {
        match store.aggregate_revision(&background(), &format!("aggregate-{aggregate}")).await {
            Ok(_) => {}
            Err(error) => fails(error, "`aggregate_revision`")?,
        }
    }
    Ok(was_enough)
}

/// Fails if the error says that an intact store is damaged, or that something does not exist.
pub(crate) fn is_no_damage(error: &Error, what: &str) -> Checked {
    match error {
        Error::Corrupt { .. } | Error::EventNotFound { .. } => Err(Failure::difference(
            format_args!("{what} with too few file descriptors (M3)"),
            "an error that does not condemn a sound store",
            &format!("{error:?}"),
        )),
        _ => Ok(()),
    }
}
