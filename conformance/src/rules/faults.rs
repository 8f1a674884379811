//! F: what remains when something breaks.
//!
//! Little of it can be brought about through the trait, so most of the rules show here as ignored.

use std::time::{Duration, SystemTime};

use eventstore_api::{Batch, CancellationToken, Context, Error, EventStore, Expected};

use crate::check::checks;
use crate::events::{append_one, background, event, events};
use crate::reading::audit;
use crate::tasks::polled;

checks! {
    /// F1: After a failed commit or sync the outcome is unknown and the writer is fenced; reads go on.
    #[ignore = "needs an engine whose sync can be made to fail"]
    async fn f1_a_failed_commit_fences_the_writer_and_reads_go_on(_env: &Env) {}

    /// F1: Only a failed commit fences the writer: an append that is refused or ended does not.
    #[on(Both)]
    async fn f1_an_append_that_is_refused_fences_nothing(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let token = CancellationToken::new();
        token.cancel();
        let (late, cancelled) = (
            Context::background().with_timeout(Duration::ZERO),
            Context::background().with_cancellation(token),
        );
        let new = events("new", "a", 2);
        let refused = [
            (background(), Batch::new(new.clone()).expected(Expected::NoEvents), "version_conflict"),
            (background(), Batch::new(vec![event("new", "a"), event("first", "b")]), "duplicate_event"),
            (background(), Batch::new(new.clone()).recorded_at(vec![SystemTime::now()]), "invalid_event"),
            (late, Batch::new(new.clone()), "deadline_exceeded"),
            (cancelled, Batch::new(new.clone()), "cancelled"),
        ];
        for (number, (ctx, batch, code)) in refused.into_iter().enumerate() {
            let outcome = store.store_batch(&ctx, batch).await;
            let found = outcome.as_ref().err().map(Error::code);
            expect_eq!(found, Some(code), "the code of the error of an append that has to be refused");
            polled(1 + number, store.store_batch(&background(), event(format!("dropped-{number}"), "b").into())).await;
            append_one(&store, event(format!("after-{code}"), "a")).await?;
            let fenced = store.stats(&background()).await?.fenced;
            expect_eq!(fenced, None, "why the writer is fenced after {code}");
        }
        audit(&store).await?;
    }

    /// F2: After a kill at any point every event acknowledged with `Sync` is there, and no batch is there in part.
    #[ignore = "needs a second process that can be killed"]
    async fn f2_what_was_acknowledged_survives_a_kill(_env: &Env) {}

    /// F3: A damaged record is `Corrupt`, never a wrong event and never a panic.
    #[ignore = "needs a hand on the files of the store"]
    async fn f3_a_damaged_record_is_corrupt_and_never_a_wrong_event(_env: &Env) {}

    /// F4: When the disk is full there is a clear error, nothing acknowledged is lost, and the store opens again.
    #[ignore = "needs a disk that can be filled"]
    async fn f4_a_full_disk_loses_nothing_that_was_acknowledged(_env: &Env) {}
}
