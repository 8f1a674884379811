//! L: opening, closing and reopening.

use std::fs;

use eventstore_api::{
    AggregateOptions, Batch, Error, Event, EventStore, EventStoreExt, Expected, Gc, LoadOptions, Version,
};

use crate::calls::call_every_method;
use crate::check::checks;
use crate::events::{append, append_history, append_one, background, event, events};
use crate::failure::Failure;
use crate::files::Content;
use crate::reading::{audit, first_of, is_sound, pages_of, same_events};
use crate::tasks::{Background, all_at_once, at_once, polled};

checks! {
    /// L1: After closing, every method of every handle returns `Closed`.
    #[on(Both)]
    async fn l1_a_closed_store_refuses_everything_with_closed(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let other = store.clone();
        store.close().await?;
        for handle in [&store, &other] {
            for after in [Version::ZERO, Version::new(1)] {
                for (method, outcome) in call_every_method(env, handle, &background(), "late", after).await {
                    expect_err!(outcome, Error::Closed, "`{method}` after `close`");
                }
            }
        }
    }

    /// L1: After closing, even calls without an effect return `Closed`: an empty batch, a repetition, a read of no
    /// event.
    async fn l1_a_closed_store_refuses_also_what_would_do_nothing(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        store.close().await?;
        let ctx = background();
        for (what, batch) in [("an empty batch", Batch::new(vec![])), ("a repetition", Batch::from(event("first", "a")))] {
            expect_err!(store.store_batch(&ctx, batch).await, Error::Closed, "{what} after `close`");
        }
        let every = LoadOptions::all();
        for options in [
            every.clone().limit(0),
            every.clone().before(Version::ZERO),
            every.clone().aggregate("nobody"),
            every.types(["Nothing"]).recorded_before(std::time::SystemTime::UNIX_EPOCH),
            LoadOptions::since(1.into()),
            LoadOptions::since(u64::MAX.into()),
        ] {
            let page = store.load_page(&ctx, &options, pages_of(1)).await;
            expect_err!(page, Error::Closed, "a page of no event, {options:?}, after `close`");
        }
        let nobody = AggregateOptions::all().before(Version::ZERO);
        let listed = store.list_aggregates(&ctx, &nobody, 1).await;
        expect_err!(listed, Error::Closed, "a list of no aggregates after `close`");
        expect_err!(store.get(&ctx, "nobody").await, Error::Closed, "getting an unknown id after `close`");
        expect_err!(store.get(&ctx, &"x".repeat(256)).await, Error::Closed, "getting an over-long id after `close`");
        expect_err!(store.aggregate_revision(&ctx, "nobody").await, Error::Closed, "an unknown aggregate after `close`");
    }

    /// L1: A store without events can be closed, dropped and reopened.
    #[on(Both)]
    async fn l1_an_empty_store_can_be_closed_and_opened_again(env: &Env) {
        let mut store = env.open().await?;
        for _ in 0..3 {
            store = env.reopen(store).await?;
            expect_eq!(audit(&store).await?, [], "the events of an empty store that was closed");
            drop(store);
            store = env.open().await?;
            expect_eq!(audit(&store).await?, [], "the events of an empty store that was dropped");
        }
        let stored = append_one(&store, event("first", "a")).await?;
        expect_eq!(stored.version, Version::new(1), "the first version of a store that was empty at several openings");
    }

    /// L1: A backup that is running when the store is closed is finished, or ends with `Closed` and leaves nothing that
    /// opens.
    #[needs(Backup)]
    #[on(Both)]
    async fn l1_closing_finishes_a_backup_or_ends_it(env: &Env) {
        for round in [0, 1, 3, 6] {
            let place = env.fresh()?;
            let store = place.open().await?;
            let data = eventstore_api::Bytes::from(vec![7; 16 << 10]);
            let large = |number| Event::builder("Large", "a").id(format!("large-{number}")).data(data.clone()).build();
            append(&store, (0..100).map(large).collect::<Result<Vec<_>, _>>()?).await?;
            let all = audit(&store).await?;
            let target = place.unused_path();
            let backup = Background::start([{
                let (store, target) = (store.clone(), target.clone());
                async move { Ok(store.backup(&background(), &target).await) }
            }]);
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            store.close().await?;
            match backup.finish().await?.remove(0) {
                Ok(_) => same_events(&audit(&place.open_at(&target).await?).await?, &all, "the events of a finished backup")?,
                outcome => {
                    expect_err!(outcome, Error::Closed, "a backup of a store that is closed meanwhile");
                    if let Ok(opened) = place.opening_at(&target).await {
                        let latest = opened.latest_version(&background()).await?;
                        expect_eq!(latest, Version::ZERO, "the latest version of what a backup left that closing ended");
                    }
                }
            }
            drop(store);
            let kept = if env.profile.survives_closing() { all.as_slice() } else { &[] };
            same_events(&audit(&place.open().await?).await?, kept, "the events after closing beside a backup")?;
        }
    }

    /// L1: `close` may be called again, by any handle, also concurrently.
    #[on(Both)]
    async fn l1_close_may_be_called_again(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let closes = (0..8).map(|_| {
            let store = store.clone();
            async move { store.close().await }
        });
        for outcome in at_once(closes.collect::<Vec<_>>()).await? {
            ensure!(outcome.is_ok(), "one of eight calls of `close` gives {outcome:?}");
        }
        store.close().await?;
        // All of them have returned, so the store can be opened, and the old handle does not close it.
        let reopened = env.open().await?;
        store.close().await?;
        append_one(&reopened, event("after", "a")).await?;
    }

    /// L1: `close` finishes accepted appends: a concurrent append is `Ok` and kept, or `Closed` and not written.
    #[on(Both)]
    async fn l1_close_finishes_what_was_accepted(env: &Env) {
        for round in 0..5_u64 {
            let env = env.fresh()?;
            let store = env.open().await?;
            let writers = Background::start((0..16).map(|writer| {
                let store = store.clone();
                async move {
                    let mut accepted = 0;
                    loop {
                        let batch = events(&format!("{writer}-{accepted}"), &format!("writer-{writer}"), 2);
                        match store.store_batch(&background(), batch.into()).await {
                            Ok(_) => accepted += 1,
                            Err(Error::Closed) => return Ok(accepted),
                            Err(error) => {
                                let what = format_args!("an append while the store is closed");
                                return Err(Failure::difference(what, "Ok or Closed", &format!("{error:?}")));
                            }
                        }
                    }
                }
            }));
            store.wait_for_events(&background(), (round * 7).into()).await?;
            store.close().await?;
            let accepted = writers.finish().await?;
            let late = store.store_batch(&background(), event("late", "a").into()).await;
            expect_err!(late, Error::Closed, "an append after `close`");
            drop(store);
            let reopened = env.open().await?;
            let all = audit(&reopened).await?;
            if env.profile.survives_closing() {
                for (writer, accepted) in accepted.into_iter().enumerate() {
                    let revision = reopened.aggregate_revision(&background(), &format!("writer-{writer}")).await?.get();
                    expect_eq!(
                        revision,
                        accepted * 2,
                        "the number of events of a writer with {accepted} accepted appends"
                    );
                }
            } else {
                expect_eq!(all, [], "the events of a store that does not survive closing");
            }
        }
    }

    /// L1: When `close` returns, the store can be reopened, even while old handles exist.
    #[on(Both)]
    async fn l1_a_closed_store_can_be_opened_again_at_once(env: &Env) {
        let mut old = Vec::new();
        for round in 0..10_u64 {
            let store = env.open().await?;
            let kept = if env.profile.survives_closing() { round } else { 0 };
            expect_eq!(store.latest_version(&background()).await?.get(), kept, "the latest version when opened again");
            append_one(&store, event(format!("round-{round}"), "a")).await?;
            store.close().await?;
            old.push(store);
        }
        let store = env.open().await?;
        for handle in &old {
            let read = handle.latest_version(&background()).await;
            expect_err!(read, Error::Closed, "a handle of a store that was closed, when it is open again");
        }
        drop(old);
        append_one(&store, event("last", "a")).await?;
        audit(&store).await?;
    }

    /// L1: Dropping the last handle closes the store: it can be reopened at once, and keeps what was appended.
    #[on(Both)]
    async fn l1_dropping_the_last_handle_closes_the_store(env: &Env) {
        let mut before = Vec::new();
        for round in 0..10 {
            let store = env.open().await?;
            let expected = if env.profile.survives_closing() { before.as_slice() } else { &[] };
            same_events(&audit(&store).await?, expected, "the events after the last handle was dropped")?;
            let other = store.clone();
            drop(store);
            append(&other, events(&format!("round-{round}"), "a", 3)).await?;
            before = audit(&other).await?;
            let loading = other.load(&background(), Version::ZERO);
            let following = other.subscribe(&background(), Version::ZERO);
            drop((other, loading, following));
        }
    }

    /// L1: Dropping the last handle right after the future of an append keeps all of the append's events or none.
    #[on(Both)]
    async fn l1_dropping_everything_leaves_whole_batches(env: &Env) {
        for round in 0..20 {
            let store = env.open().await?;
            append_one(&store, event(format!("round-{round}"), "a")).await?;
            polled(round % 5, store.store_batch(&background(), events(&format!("dropped-{round}"), "b", 3).into()))
                .await;
            drop(store);
            let store = env.open().await?;
            audit(&store).await?;
            let revision = store.aggregate_revision(&background(), "b").await?.get();
            expect_eq!(revision % 3, 0, "the number {revision} of events of dropped appends, three each, modulo three");
        }
    }

    /// L1: Dropping the future of `close` does not stop the closing.
    #[on(Both)]
    async fn l1_a_dropped_close_still_closes(env: &Env) {
        for polls in 1..5 {
            let store = env.open().await?;
            append_one(&store, event(format!("polls-{polls}"), "a")).await?;
            polled(polls, store.close()).await;
            // Nobody else closes the store, so this returns only if the closing continues.
            let waited = store.wait_for_events(&background(), u64::MAX.into()).await;
            expect_err!(waited, Error::Closed, "waiting after a `close` that was polled {polls} times and dropped");
            store.close().await?;
        }
        let store = env.open().await?;
        let kept = if env.profile.survives_closing() { 4 } else { 0 };
        expect_eq!(audit(&store).await?.len(), kept, "the number of events after four closings");
    }

    /// L1: Closing ends waiting calls and subscriptions with `Closed`.
    #[on(Both)]
    async fn l1_closing_ends_those_who_wait(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let waiting = Background::start((0..8).map(|_| {
            let store = store.clone();
            async move { Ok(store.wait_for_events(&background(), 1.into()).await) }
        }));
        let mut streams = Vec::new();
        for _ in 0..8 {
            let mut stream = store.subscribe(&background(), Version::ZERO);
            let first = stream.next().await;
            ensure!(matches!(first, Some(Ok(_))), "a subscription gives what is there: {first:?}");
            streams.push(stream);
        }
        let following = Background::start(streams.into_iter().map(|mut stream| async move {
            let end = stream.next().await;
            let after = stream.next().await;
            ensure!(after.is_none(), "a subscription goes on after its error: {after:?}");
            Ok(end.map_or(Ok(()), |last| last.map(drop)))
        }));
        tokio::task::yield_now().await;
        store.close().await?;
        for outcome in waiting.finish().await? {
            expect_err!(outcome, Error::Closed, "`wait_for_events` when the store is closed meanwhile");
        }
        for outcome in following.finish().await? {
            expect_err!(outcome, Error::Closed, "a subscription when the store is closed meanwhile");
        }
    }

    /// L1: A load that is running when the store is closed returns `Closed` or what it has read, and never a gap.
    async fn l1_closing_ends_loads(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 20).await?;
        let size = pages_of(5);
        let page = store.load_page(&background(), &LoadOptions::all(), size).await?;
        let Some(next) = page.next else {
            return Err(Failure::new("the first of four pages leads to no next one"));
        };
        store.close().await?;
        expect_err!(store.load_page(&background(), &next, size).await, Error::Closed, "the next page after `close`");
    }

    /// L1, declared absent: a store that does not survive closing is empty when it is reopened.
    #[needs(NoPersistence)]
    async fn l1_without_persistence_a_reopened_store_is_empty(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let store = env.reopen(store).await?;
        expect_eq!(audit(&store).await?, [], "the events of a reopened store that does not survive closing");
        drop(store);
        let store = env.open().await?;
        let stored = append_one(&store, event("history-1", "a")).await?;
        expect_eq!(stored.version, Version::new(1), "the first version of a store that does not survive closing");
    }

    /// L2: A second opening is `Locked` and does no harm; after the first is closed, the store opens.
    #[needs(Locking)]
    async fn l2_a_second_opening_is_locked_and_harms_nothing(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let before = audit(&store).await?;
        for round in 0..5 {
            let second = env.opening().await;
            expect_err!(second, Error::Locked { .. }, "a second opening of an open store");
            append_one(&store, event(format!("between-{round}"), "a")).await?;
        }
        let after = audit(&store).await?;
        same_events(first_of(&after, before.len()), &before, "the events after second openings")?;
        expect_eq!(after.len(), before.len() + 5, "the number of events after second openings");
        let store = env.reopen(store).await?;
        if env.profile.survives_closing() {
            same_events(&audit(&store).await?, &after, "the events once the store is opened again")?;
        }
        expect_err!(env.opening().await, Error::Locked { .. }, "a second opening of a store that was opened again");
    }

    /// L2: Of concurrent openings, one succeeds and the others are `Locked`.
    #[needs(Locking)]
    async fn l2_of_openings_at_once_one_succeeds(env: &Env) {
        for round in 0..5 {
            let (mut opened, mut locked) = (Vec::new(), 0);
            for outcome in at_once((0..8).map(|_| env.opening()).collect::<Vec<_>>()).await? {
                match outcome {
                    Ok(store) => opened.push(store),
                    other => {
                        expect_err!(other, Error::Locked { .. }, "one of eight openings at the same time");
                        locked += 1;
                    }
                }
            }
            expect_eq!((opened.len(), locked), (1, 7), "how many of eight openings succeed, and how many are `Locked`");
            append_one(&opened[0], event(format!("round-{round}"), "a")).await?;
            audit(&opened[0]).await?;
        }
    }

    /// L2: A second opening under another name of the same directory is `Locked`.
    #[needs(Locking)]
    async fn l2_another_name_of_the_place_is_the_same_store(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let mut names = vec![env.directory().join(".")];
        if let (Some(parent), Some(name)) = (env.directory().parent(), env.directory().file_name()) {
            names.push(parent.join(name).join("..").join(name));
        }
        #[cfg(unix)]
        {
            let link = env.unused_path();
            std::os::unix::fs::symlink(env.directory(), &link)?;
            names.push(link);
        }
        for name in names {
            let second = env.opening_at(&name).await;
            expect_err!(second, Error::Locked { .. }, "opening an open store as {}", name.display());
        }
        append_one(&store, event("after", "a")).await?;
        expect_eq!(audit(&store).await?.len(), 4, "the number of events after second openings by other names");
    }

    /// L2: An opening whose future is dropped leaves no lock behind.
    #[needs(Locking)]
    #[on(Both)]
    async fn l2_an_opening_that_is_dropped_leaves_no_lock(env: &Env) {
        for polls in 0..6 {
            drop(polled(polls, env.opening()).await);
            // The dropped opening may take a moment to end.
            let store = loop {
                match env.opening().await {
                    Err(Error::Locked { .. }) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                    outcome => break outcome?,
                }
            };
            append_one(&store, event(format!("polls-{polls}"), "a")).await?;
            audit(&store).await?;
            store.close().await?;
        }
    }

    /// L2: A second opening from another process is `Locked`.
    #[ignore = "needs a second process"]
    async fn l2_an_opening_from_another_process_is_locked(_env: &Env) {}

    /// L2, declared absent: a second opening of a store that does not lock succeeds and does no harm.
    #[needs(NoLocking)]
    async fn l2_without_locking_a_second_opening_harms_nothing(env: &Env) {
        let first = env.open().await?;
        append_history(&first, 10).await?;
        let before = audit(&first).await?;
        let second = env.open().await?;
        if env.profile.survives_closing() {
            same_events(&audit(&second).await?, &before, "the events that a second opening shows")?;
        } else {
            expect_eq!(audit(&second).await?, [], "the events of a second store in memory");
            all_at_once([append_one(&second, event("other", "a"))]).await?;
        }
        second.close().await?;
        same_events(&audit(&first).await?, &before, "the events of the first after a second was opened and closed")?;
    }

    /// L3: Opening is bounded work: it does not grow with the number of events.
    #[ignore = "needs a large store and a clock; see the benchmarks"]
    async fn l3_opening_does_not_grow_with_the_number_of_events(_env: &Env) {}

    /// L4: A store or backup that is opened read-only shows everything and refuses writes, and no byte of its directory
    /// changes.
    #[needs(ReadOnly)]
    #[on(Both)]
    async fn l4_a_store_that_is_only_read_stays_as_it_is(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 60).await?;
        append(&store, events("many", "many", 1500)).await?;
        let all = audit(&store).await?;
        let mut places = vec![env.directory().to_owned()];
        if env.profile.takes_backups() {
            let target = env.unused_path();
            store.backup(&background(), &target).await?;
            places.push(target);
        }
        store.close().await?;
        drop(store);
        for place in places {
            let before = Content::of(&place)?;
            let reader = env.read_at(&place).await?;
            same_events(&audit(&reader).await?, &all, "the events of a store that is only read")?;
            let stats = reader.stats(&background()).await?;
            expect_eq!((stats.latest_version.get(), stats.aggregates), (1560, 4), "what `stats` of a store tell that is only read");
            if env.profile.verifies() {
                is_sound(&reader.verify(&background()).await?, &all)?;
            }
            let (new, there) = (event("new", "a"), event("history-1", "a"));
            for (what, batch) in [
                ("a new event", Batch::from(new.clone())),
                ("an event that is there", Batch::from(there.clone())),
                ("both", Batch::new(vec![new.clone(), there])),
                ("a new event on a condition", Batch::from(new).expected(Expected::Exists)),
            ] {
                let refused = reader.store_batch(&background(), batch).await;
                expect_err!(refused, Error::Unsupported { .. }, "an append of {what} to a store that is only read");
            }
            for gc in [Gc::Quick, Gc::Full] {
                let refused = reader.run_gc(&background(), gc).await;
                expect_err!(refused, Error::Unsupported { .. }, "a collection ({gc:?}) of a store that is only read");
            }
            if env.profile.takes_backups() {
                let target = env.unused_path();
                reader.backup(&background(), &target).await?;
                let backup = env.open_at(&target).await?;
                same_events(&audit(&backup).await?, &all, "the events of a backup of a store that is only read")?;
            }
            reader.close().await?;
            drop(reader);
            before.is_still(&place, "the directory of a store that was only read")?;
        }
        let store = env.open().await?;
        append_one(&store, event("new", "a")).await?;
        expect_eq!(audit(&store).await?.len(), all.len() + 1, "the number of events of a store that was only read before");
    }

    /// L4: Several readers may have a store open read-only at the same time, and each closes independently.
    #[needs(ReadOnly)]
    #[on(Both)]
    async fn l4_several_may_read_a_store_at_once(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 60).await?;
        let all = audit(&store).await?;
        store.close().await?;
        drop(store);
        let before = Content::of(env.directory())?;
        let readers = at_once((0..4).map(|_| env.reading_at(env.directory())).collect::<Vec<_>>()).await?;
        let mut readers = readers.into_iter().collect::<Result<Vec<_>, _>>()?;
        while let Some(reader) = readers.pop() {
            same_events(&audit(&reader).await?, &all, "the events that one of several shows who only read")?;
            if readers.len() % 2 == 0 {
                reader.close().await?;
            }
        }
        before.is_still(env.directory(), "the directory of a store that several have read")?;
        let store = env.open().await?;
        append_one(&store, event("new", "a")).await?;
    }

    /// L4: A writer and a read-only reader exclude each other: the later opening is `Locked` and does no harm. A store
    /// that opts out of L2 need not do this.
    #[needs(ReadOnly)]
    async fn l4_who_writes_and_who_reads_keep_each_other_out(env: &Env) {
        if !env.profile.locks() {
            return Ok(());
        }
        let store = env.open().await?;
        append_history(&store, 10).await?;
        for round in 0..3 {
            let reading = env.reading_at(env.directory()).await;
            expect_err!(reading, Error::Locked { .. }, "opening a store to read only that is open to be written to");
            append_one(&store, event(format!("between-{round}"), "a")).await?;
        }
        let all = audit(&store).await?;
        expect_eq!(all.len(), 13, "the number of events beside openings that were refused");
        store.close().await?;
        drop(store);
        let before = Content::of(env.directory())?;
        let (one, other) = (env.read_at(env.directory()).await?, env.read_at(env.directory()).await?);
        for reader in [one, other] {
            for _ in 0..3 {
                let writing = env.opening().await;
                expect_err!(writing, Error::Locked { .. }, "opening a store to write to it that is being read");
            }
            same_events(&audit(&reader).await?, &all, "the events that a reader shows when a writer was refused")?;
            reader.close().await?;
        }
        before.is_still(env.directory(), "the directory of a store that was only read, to which a writer was refused")?;
        let store = env.open().await?;
        append_one(&store, event("after", "a")).await?;
        same_events(first_of(&audit(&store).await?, 13), &all, "the events when the readers have gone")?;
    }

    /// L4: Read-only opening creates no store: if there is none, it is `Open`, and nothing is there afterwards.
    #[needs(ReadOnly)]
    async fn l4_what_is_not_there_is_not_made_by_reading(env: &Env) {
        let (missing, empty) = (env.unused_path(), env.unused_path());
        fs::create_dir(&empty)?;
        for place in [&missing, &empty] {
            let before = Content::of(place)?;
            let reading = env.reading_at(place).await;
            expect_err!(reading, Error::Open { .. }, "opening to read only where there is no store");
            before.is_still(place, "a place without a store that was opened to read only")?;
        }
        let store = env.open_at(&empty).await?;
        expect_eq!(audit(&store).await?, [], "the events of a store that begins where somebody wanted to read one");
    }

    /// L4, declared absent: read-only opening is `Unsupported`, and changes nothing.
    #[needs(NoReadOnly)]
    async fn l4_without_it_opening_to_read_only_is_unsupported(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        store.close().await?;
        drop(store);
        let before = Content::of(env.directory())?;
        let reading = env.reading_at(env.directory()).await;
        expect_err!(reading, Error::Unsupported { .. }, "opening a store to read only that cannot be opened so");
        before.is_still(env.directory(), "the directory of a store that cannot be opened to read only")?;
        let store = env.open().await?;
        let kept = if env.profile.survives_closing() { 10 } else { 0 };
        expect_eq!(audit(&store).await?.len(), kept, "the number of events after an opening that is unsupported");
    }
}
