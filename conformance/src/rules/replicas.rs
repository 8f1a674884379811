//! R: the calls of replicas: sync, pull and push.

use eventstore_api::{
    Batch, Digest, Durability, Error, EventStore, Expected, PageSize, Place, RecordedEvent, StoreOutcome, Stored,
    Version,
};

use crate::check::checks;
use crate::env::Store;
use crate::events::{append, append_history, append_one, background, event, events};
use crate::failure::Checked;
use crate::reading::{audit, digests_of, same_events};

/// The places of a store with these events, beginning with the start.
fn places_of(all: &[RecordedEvent]) -> Vec<Place> {
    (0..).map(Version::new).zip(digests_of(all)).map(|(version, digest)| Place::new(version, digest)).collect()
}

/// Pulls everything since a place, in pages of this size.
async fn pull_all(store: &Store, since: Place, size: PageSize) -> Checked<Vec<RecordedEvent>> {
    let (mut all, mut place) = (Vec::new(), since);
    loop {
        let pulled = store.pull(&background(), place, size).await?;
        let last = pulled.events.last().map_or(place.version, |last| last.version);
        ensure!(last <= pulled.head, "a pull gave version {last}, and the head {}", pulled.head);
        ensure!(!pulled.events.is_empty() || last == pulled.head, "a pull gave nothing, and the head {}", pulled.head);
        let digest = pulled.events.iter().fold(place.digest, Digest::chain);
        place = Place::new(last, digest);
        all.extend(pulled.events);
        if last == pulled.head {
            return Ok(all);
        }
    }
}

checks! {
    /// R1: A sync returns the version of the newest event, of any durability, and version 0 for an empty store.
    #[on(Both)]
    async fn r1_a_sync_goes_up_to_the_newest_event(env: &Env) {
        let store = env.open().await?;
        expect_eq!(store.sync(&background()).await?, Version::ZERO, "what an empty store is synced up to");
        for (count, durability) in [(3, Durability::Sync), (2, Durability::Buffered)] {
            append(&store, Batch::new(events(&format!("{durability}"), "a", count)).durability(durability)).await?;
            let latest = store.latest_version(&background()).await?;
            expect_eq!(store.sync(&background()).await?, latest, "what a store is synced up to after {durability}");
            expect_eq!(audit(&store).await?.len() as u64, latest.get(), "the number of events after a sync");
        }
    }

    /// R1: What is synced survives a power cut.
    #[ignore = "needs a system whose syncs can be observed"]
    async fn r1_what_is_synced_survives_a_power_cut(_env: &Env) {}

    /// R1: A pull returns events of either durability, and the head up to which the store is then synced.
    async fn r1_a_pull_gives_what_was_buffered_and_tells_its_head(env: &Env) {
        let store = env.open().await?;
        append(&store, Batch::new(events("synced", "a", 2))).await?;
        append(&store, Batch::new(events("buffered", "a", 2)).durability(Durability::Buffered)).await?;
        let pulled = store.pull(&background(), Place::START, PageSize::LARGEST).await?;
        expect_eq!(pulled.head.get(), 4, "the head of a pull of four events");
        same_events(&pulled.events, &audit(&store).await?, "the events of a pull")?;
    }

    /// R2: A place of another history is refused by pull and push, and any place of this history is accepted.
    #[on(Both)]
    async fn r2_a_place_of_another_history_is_refused(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 12).await?;
        let all = audit(&store).await?;
        let places = places_of(&all);
        for (at, place) in places.iter().enumerate() {
            let pulled = store.pull(&background(), *place, PageSize::LARGEST).await?;
            same_events(&pulled.events, &all[at..], "the events of a pull")?;
            let other = places[(at + 1) % places.len()].digest;
            let mut bytes = *place.digest.as_bytes();
            bytes[31] ^= 1;
            for digest in [other, Digest::from_bytes(bytes)] {
                let wrong = Place::new(place.version, digest);
                expect_err!(
                    store.pull(&background(), wrong, PageSize::LARGEST).await,
                    Error::HistoryDiverged { .. },
                    "a pull at version {at} with the digest of another history"
                );
                expect_err!(
                    store.push(&background(), wrong, vec![event("never", "a").into()]).await,
                    Error::HistoryDiverged { .. },
                    "a push at version {at} with the digest of another history"
                );
            }
        }
        same_events(&audit(&store).await?, &all, "the events after pushes that were refused")?;
    }

    /// R2: A store that ends before the place refuses it.
    async fn r2_a_place_beyond_the_end_is_refused(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let places = places_of(&audit(&store).await?);
        let beyond = Place::new(4.into(), places[3].digest);
        expect_err!(
            store.pull(&background(), beyond, PageSize::LARGEST).await,
            Error::HistoryDiverged { cursor, found } if cursor == beyond.cursor() && found == places[3].cursor(),
            "a pull beyond the end"
        );
        expect_err!(
            store.push(&background(), beyond, vec![event("never", "a").into()]).await,
            Error::HistoryDiverged { .. },
            "a push beyond the end"
        );
        expect_eq!(store.latest_version(&background()).await?.get(), 3, "the latest version after a push that was refused");
    }

    /// R3: A push stores its batches in order, each with its condition, and a repetition returns the first positions.
    #[on(Both)]
    async fn r3_a_push_stores_batches_in_order_and_may_be_repeated(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let at = places_of(&audit(&store).await?)[1];
        let batches = || vec![
            Batch::new(events("of a", "a", 2)).expected(Expected::Revision(1.into())),
            Batch::new(events("of b", "b", 3)).expected(Expected::NoEvents),
            Batch::from(event("last", "a")).expected(Expected::LatestVersion(6.into())),
        ];
        for outcome in [StoreOutcome::Written, StoreOutcome::AlreadyStored] {
            let pushed = store.push(&background(), at, batches()).await?;
            ensure!(pushed.refused.is_none(), "a push was refused: {:?}", pushed.refused);
            let place = |version: u64, revision: u64| Stored::new(version.into(), revision.into(), outcome);
            let expected =
                vec![vec![place(2, 2), place(3, 3)], vec![place(4, 1), place(5, 2), place(6, 3)], vec![place(7, 4)]];
            expect_eq!(pushed.stored, expected, "the places of what was pushed");
            expect_eq!(pushed.head.get(), 7, "the head after a push");
        }
        expect_eq!(audit(&store).await?.len(), 7, "the number of events after a push and its repetition");
    }

    /// R3: A push stops at the first refused batch, returns the reason, and has stored the batches before it.
    #[on(Both)]
    async fn r3_a_push_stops_at_the_first_refusal(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let at = places_of(&audit(&store).await?)[1];
        let batches = vec![
            event("before", "b").into(),
            Batch::new(events("refused", "a", 2)).expected(Expected::NoEvents),
            event("behind", "c").into(),
        ];
        let pushed = store.push(&background(), at, batches).await?;
        expect_eq!(pushed.stored.len(), 1, "the number of batches before the refusal");
        ensure!(
            matches!(pushed.refused, Some(Error::VersionConflict { .. })),
            "a push with a condition that does not hold was refused with {:?}",
            pushed.refused
        );
        expect_eq!(pushed.head.get(), 2, "the head after a push that was refused");
        expect_eq!(audit(&store).await?.len(), 2, "the number of events after a push that was refused");
    }

    /// R3: An empty push stores nothing, but its place is checked nevertheless.
    async fn r3_a_push_of_nothing_is_accepted(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 2).await?;
        let at = places_of(&audit(&store).await?)[2];
        let pushed = store.push(&background(), at, Vec::new()).await?;
        ensure!(pushed.refused.is_none() && pushed.stored.is_empty(), "a push of nothing gave {pushed:?}");
        expect_eq!(pushed.head.get(), 2, "the head after a push of nothing");
    }

    /// R4: Pulling with the last place seen misses nothing and repeats nothing while events are appended.
    async fn r4_pulling_misses_nothing_while_writers_write(env: &Env) {
        let store = env.open().await?;
        let writing = {
            let store = store.clone();
            async move {
                for round in 0..40 {
                    let durability = if round % 2 == 0 { Durability::Sync } else { Durability::Buffered };
                    append(&store, Batch::new(events(&round.to_string(), "a", 3)).durability(durability)).await?;
                }
                Ok(())
            }
        };
        let pulling = {
            let store = store.clone();
            async move {
                let (mut all, mut place) = (Vec::new(), Place::START);
                while all.len() < 120 {
                    store.wait_for_events(&background(), place.version).await?;
                    let more = pull_all(&store, place, PageSize::new(7, 4096)).await?;
                    let digest = more.iter().fold(place.digest, Digest::chain);
                    place = Place::new(more.last().map_or(place.version, |last| last.version), digest);
                    all.extend(more);
                }
                Ok(all)
            }
        };
        let (written, pulled): (Checked, Checked<Vec<_>>) = tokio::join!(writing, pulling);
        written?;
        same_events(&pulled?, &audit(&store).await?, "the events that were pulled while writers wrote")?;
    }
}
