//! S: following the store.

use std::pin::pin;

use eventstore_api::{
    CancellationToken, Context, Cursor, Direction, Error, Event, EventStore, EventStoreExt, EventStream, Gc,
    LoadOptions, RecordedEvent, Version,
};

use crate::check::checks;
use crate::env::Store;
use crate::events::{append, append_history, append_one, background, event, events};
use crate::failure::{Checked, Failure};
use crate::reading::{add_page, audit, behind, ids, same_events, select};
use crate::tasks::{Background, all_at_once, polled};

checks! {
    /// S1: A subscription returns every event after its version once, in order: existing ones, then new ones, without a
    /// gap in between.
    #[on(Both)]
    async fn s1_a_subscription_goes_from_what_is_there_to_what_comes_without_a_seam(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 30).await?;
        let writers = write(&store, 4, 40);
        let options = [
            LoadOptions::all(),
            LoadOptions::all(),
            LoadOptions::since(15.into()),
            LoadOptions::since(30.into()),
            // Beyond the end: earlier events are not requested.
            LoadOptions::since(130.into()),
            LoadOptions::all().aggregate("a"),
            LoadOptions::since(20.into()).aggregate("a"),
            LoadOptions::since(100.into()).aggregate("a"),
        ];
        let subscribers =
            Background::start(options.clone().map(|options| until(store.subscribe(&background(), options), "last")));
        // Others begin later, in the middle of the writing.
        store.wait_for_events(&background(), 100.into()).await?;
        let later =
            Background::start(options.clone().map(|options| until(store.subscribe(&background(), options), "last")));
        writers.finish().await?;
        append_one(&store, event("last", "a")).await?;
        let all = audit(&store).await?;
        expect_eq!(all.len(), 30 + 4 * 40 * 2 + 1, "the number of events");
        for seen in [subscribers.finish().await?, later.finish().await?] {
            for (seen, options) in seen.iter().zip(&options) {
                same_events(seen, &select(&all, options), &format!("what a subscription with {options:?} gave"))?;
            }
        }
    }

    /// S1: A subscription returns each new event as it is appended.
    #[on(Both)]
    async fn s1_a_subscription_gives_each_event_as_it_comes(env: &Env) {
        let store = env.open().await?;
        let mut all = store.subscribe(&background(), Version::ZERO);
        let mut one = store.subscribe(&background(), LoadOptions::all().aggregate("b"));
        for number in 0..100 {
            // The subscription is waiting when the event comes, has not begun to wait, or is about to.
            polled(number % 4, all.next()).await;
            polled(number % 3, one.next()).await;
            let id = format!("event-{number}");
            append_one(&store, event(&id, if number % 2 == 0 { "a" } else { "b" })).await?;
            expect_eq!(next(&mut all).await?.event.id(), id, "the next event of a subscription to everything");
            if number % 2 == 1 {
                expect_eq!(next(&mut one).await?.event.id(), id, "the next event of a subscription to an aggregate");
            }
        }
    }

    /// S1: A subscription with a limit ends after that many events.
    async fn s1_a_subscription_with_a_limit_ends_after_it(env: &Env) {
        let store = env.open().await?;
        append(&store, events("early", "a", 3)).await?;
        let ctx = background();
        let none = store.subscribe(&ctx, LoadOptions::all().limit(0)).into_vec().await?;
        expect_eq!(none, [], "a subscription to no event");
        let early = store.subscribe(&ctx, LoadOptions::all().limit(2)).into_vec().await?;
        expect_eq!(ids(&early), ["early-1", "early-2"], "a subscription to as many events as there are");
        let across = Background::start(
            [store.subscribe(&ctx, LoadOptions::since(1.into()).limit(4))]
                .map(|stream| async { Ok(stream.into_vec().await?) }),
        );
        append(&store, events("later", "a", 3)).await?;
        let across = across.finish().await?;
        expect_eq!(
            ids(&across[0]),
            ["early-2", "early-3", "later-1", "later-2"],
            "a subscription to some that are there and some that come"
        );
    }

    /// S1: A subscription that is cancelled ends with `Cancelled`.
    #[on(Both)]
    async fn s1_a_cancelled_subscription_ends_with_its_error(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let token = CancellationToken::new();
        let mut stream = store.subscribe(&Context::background().with_cancellation(token.clone()), Version::ZERO);
        for _ in 0..3 {
            next(&mut stream).await?;
        }
        let following = Background::start([async move {
            let end = stream.next().await;
            let after = stream.next().await;
            Ok((end, after.is_none()))
        }]);
        tokio::task::yield_now().await;
        token.cancel();
        let ended = following.finish().await?;
        for (end, over) in ended {
            expect_err!(
                end.map_or(Ok(()), |last| last.map(drop)),
                Error::Cancelled,
                "the end of a cancelled subscription"
            );
            ensure!(over, "a subscription goes on after its error");
        }
    }

    /// S1: Waiting for events returns at once if there are any, and otherwise as soon as one is appended; no wake-up is
    /// lost.
    #[on(Both)]
    async fn s1_waiting_for_events_misses_no_event(env: &Env) {
        let store = env.open().await?;
        for number in 0..100_u64 {
            let waits = (0..4).map(|_| {
                let store = store.clone();
                async move { Ok(store.wait_for_events(&background(), number.into()).await?) }
            });
            let waiting = Background::start(waits);
            if number % 2 == 0 {
                tokio::task::yield_now().await;
            }
            append_one(&store, event(format!("event-{number}"), "a")).await?;
            for version in waiting.finish().await? {
                expect_eq!(version.get(), number + 1, "the version that was waited for");
            }
            for after in 0..=number {
                let version = store.wait_for_events(&background(), after.into()).await?;
                expect_eq!(version.get(), number + 1, "the latest version, when it is greater than {after} already");
            }
        }
    }

    /// S1: Waiting for a later version returns when that version is reached, and not earlier.
    #[on(Both)]
    async fn s1_waiting_for_a_later_version_ends_with_it(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("event-1", "a")).await?;
        let ctx = background();
        let mut wait = pin!(store.wait_for_events(&ctx, 4.into()));
        for number in 2..=4 {
            let early = polled(3, wait.as_mut()).await;
            ensure!(early.is_none(), "waiting for more than 4 events ends at {}: {early:?}", number - 1);
            append_one(&store, event(format!("event-{number}"), "a")).await?;
        }
        let early = polled(3, wait.as_mut()).await;
        ensure!(early.is_none(), "waiting for more than 4 events ends at 4: {early:?}");
        append_one(&store, event("event-5", "a")).await?;
        expect_eq!(wait.await?, Version::new(5), "the version that was waited for");
    }

    /// S1: In a reopened store, waiting returns existing events at once.
    #[needs(Persistence)]
    #[on(Both)]
    async fn s1_waiting_after_reopening_knows_what_was_there(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let store = env.reopen(store).await?;
        for after in 0..3 {
            let reached = store.wait_for_events(&background(), after.into()).await?;
            expect_eq!(reached, Version::new(3), "the version that is there after reopening, waiting after {after}");
        }
        let early = polled(3, store.wait_for_events(&background(), 3.into())).await;
        ensure!(early.is_none(), "waiting for a new event ends with the reopening: {early:?}");
        append_one(&store, event("new", "a")).await?;
        let reached = store.wait_for_events(&background(), 3.into()).await?;
        expect_eq!(reached, Version::new(4), "the version of the first event after reopening");
    }

    /// S1: After reopening, a subscription since the last version seen continues without gaps or repetitions.
    #[needs(Persistence)]
    async fn s1_following_goes_on_after_reopening(env: &Env) {
        let mut store = env.open().await?;
        let mut seen: Vec<RecordedEvent> = Vec::new();
        for round in 0..4 {
            append(&store, events(&format!("round-{round}"), "a", 5)).await?;
            let since = seen.last().map_or(Version::ZERO, |event| event.version);
            let mut stream = store.subscribe(&background(), since);
            // Not all of them: the rest follows after the next opening.
            for _ in 0..4 {
                let event = next(&mut stream).await?;
                add_page(&mut seen, vec![event], Direction::Forward)?;
            }
            drop(stream);
            store = env.reopen(store).await?;
        }
        append_one(&store, event("last", "a")).await?;
        let since = seen.last().map_or(Version::ZERO, |event| event.version);
        seen.extend(until(store.subscribe(&background(), since), "last").await?);
        same_events(&seen, &audit(&store).await?, "what a subscriber saw over five openings")?;
    }

    /// S1: A subscription from beyond the end returns only later events, and one from the greatest possible version
    /// returns nothing.
    #[on(Both)]
    async fn s1_a_subscription_from_beyond_the_end_gives_what_comes_beyond(env: &Env) {
        let store = env.open().await?;
        append(&store, events("early", "a", 3)).await?;
        let token = CancellationToken::new();
        let ctx = Context::background().with_cancellation(token.clone());
        let mut beyond = store.subscribe(&ctx, Version::new(5));
        let mut never = store.subscribe(&ctx, Version::new(u64::MAX));
        for id in ["event-4", "event-5", "event-6"] {
            for stream in [&mut beyond, &mut never] {
                let early = polled(3, stream.next()).await;
                ensure!(early.is_none(), "a subscription from beyond the end gives {early:?} before {id}");
            }
            append_one(&store, event(id, "a")).await?;
        }
        expect_eq!(next(&mut beyond).await?.event.id(), "event-6", "the first event of a subscription since version 5");
        let early = polled(3, never.next()).await;
        ensure!(early.is_none(), "a subscription from the last version there can be gives {early:?}");
        token.cancel();
        let end = never.next().await.map_or(Ok(()), |last| last.map(drop));
        expect_err!(end, Error::Cancelled, "the end of a subscription from the last version there can be");
    }

    /// S1: With any number of subscribers, all see every event.
    #[on(Both)]
    async fn s1_however_many_follow_all_see_every_event(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let mut streams: Vec<_> = (0..300).map(|_| store.subscribe(&background(), Version::ZERO)).collect();
        for stream in &mut streams {
            expect_eq!(next(stream).await?.event.id(), "first", "the first event of one of 300 subscriptions");
            polled(2, stream.next()).await;
        }
        let following = Background::start(streams.into_iter().map(|stream| until(stream, "last")));
        write(&store, 2, 10).finish().await?;
        append_one(&store, event("last", "a")).await?;
        let all = audit(&store).await?;
        for seen in following.finish().await? {
            same_events(&seen, behind(&all, 1), "what one of 300 subscriptions gave")?;
        }
    }

    /// S1: Subscriptions continue during garbage collections of either kind.
    #[on(Both)]
    async fn s1_following_goes_on_through_collections(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 6).await?;
        let options = [LoadOptions::all(), LoadOptions::since(4.into()), LoadOptions::all().aggregate("a")];
        let mut streams = options.clone().map(|options| store.subscribe(&background(), options));
        let mut seen = [const { Vec::new() }; 3];
        for (number, gc) in [Gc::Quick, Gc::Full, Gc::Quick, Gc::Full].into_iter().enumerate() {
            for (stream, seen) in streams.iter_mut().zip(&mut seen) {
                // Up to the point where it has to wait.
                while let Some(event) = polled(3, next(stream)).await {
                    seen.push(event?);
                }
            }
            match store.run_gc(&background(), gc).await {
                Err(Error::Unsupported { .. }) if gc == Gc::Full => {}
                outcome => drop(outcome?),
            }
            append_one(&store, event(format!("after-{number}"), "a")).await?;
        }
        append_one(&store, event("last", "a")).await?;
        let all = audit(&store).await?;
        for ((stream, mut seen), options) in streams.into_iter().zip(seen).zip(options) {
            seen.extend(until(stream, "last").await?);
            same_events(&seen, &select(&all, &options), &format!("what a subscription with {options:?} gave"))?;
        }
    }

    /// S2: Subscribers that do not read never block the writer, and find everything later.
    #[on(Both)]
    async fn s2_a_subscriber_that_does_not_read_never_blocks_the_writer(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let mut slow: Vec<_> = (0..20).map(|_| store.subscribe(&background(), Version::ZERO)).collect();
        for (number, stream) in slow.iter_mut().enumerate() {
            next(stream).await?;
            // Some have begun to wait for the next event, and are not polled again when it comes.
            polled(number % 3, stream.next()).await;
        }
        // More than a buffer of one for each subscriber would hold.
        for number in 0..20 {
            append(&store, events(&format!("batch-{number}"), "a", 400)).await?;
        }
        append_one(&store, event("last", "a")).await?;
        let all = audit(&store).await?;
        let seen = all_at_once(slow.into_iter().map(|stream| until(stream, "last"))).await?;
        for seen in seen {
            same_events(&seen, behind(&all, 1), "what a slow subscriber finds in the end")?;
        }
    }

    /// S2: Calls that wait for events and are never polled again block nobody.
    async fn s2_a_waiter_that_is_never_polled_blocks_nobody(env: &Env) {
        let store = env.open().await?;
        let ctx = background();
        let mut waits: Vec<_> = (0..100).map(|_| store.wait_for_events(&ctx, Version::ZERO)).collect();
        for wait in &mut waits {
            let early = polled(1, wait).await;
            ensure!(early.is_none(), "`wait_for_events` returns in an empty store: {early:?}");
        }
        write(&store, 2, 50).finish().await?;
        let latest = store.latest_version(&ctx).await?;
        for wait in waits {
            let version = wait.await?;
            ensure!(version > Version::ZERO && version <= latest, "`wait_for_events` gives {version} of {latest}");
        }
    }

    /// S3: A cursor stays valid after appends and garbage collections.
    #[on(Both)]
    async fn s3_a_cursor_stays_good_while_the_store_goes_on(env: &Env) {
        let store = env.open().await?;
        goes_on(&store, &[Cursor::START], "an empty store").await?;
        append_history(&store, 12).await?;
        let cursors = cursors_until(&store, 12).await?;
        expect_eq!(cursors[0], Cursor::START, "the cursor before the first event");
        goes_on(&store, &cursors, "a store at rest").await?;
        append(&store, events("many", "many", 1500)).await?;
        goes_on(&store, &cursors, "a store that was appended to").await?;
        for gc in [Gc::Quick, Gc::Full] {
            match store.run_gc(&background(), gc).await {
                Err(Error::Unsupported { .. }) if gc == Gc::Full => {}
                outcome => drop(outcome?),
            }
            goes_on(&store, &cursors, "a store that collected garbage").await?;
        }
        expect_eq!(cursors_until(&store, 12).await?, cursors, "the cursors when they are taken again");
        let writers = write(&store, 3, 40);
        while writers.is_running() {
            goes_on(&store, &cursors, "a store that is written to").await?;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        let beyond = store.cursor_at(&background(), Version::new(100_000)).await;
        expect_err!(beyond, Error::InvalidVersion { .. }, "the cursor of a version that the store has not come to");
    }

    /// S3: A cursor of another history is refused from the first differing event on, and accepted before it.
    async fn s3_a_cursor_of_another_history_is_refused(env: &Env) {
        let (store, others) = (env.open().await?, env.fresh()?);
        let all = append_history(&store, 40).await?;
        let same = event(all[4].id(), all[4].aggregate_id());
        let builder = Event::builder(same.event_type(), same.aggregate_id()).id(same.id());
        for other in [
            builder.data("other").build()?,
            Event::builder(same.event_type(), same.aggregate_id())
                .id(same.id())
                .data(same.data_bytes())
                .metadata_json("{\"other\":true}")
                .build()?,
            event("other", same.aggregate_id()),
        ] {
            // Only the fifth event differs; later ones are the same.
            let others = others.fresh()?;
            let another = others.open().await?;
            append(&another, [&all[..4], std::slice::from_ref(&other), &all[5..]].concat()).await?;
            let (of_store, of_other) = (cursors_until(&store, 40).await?, cursors_until(&another, 40).await?);
            goes_on(&another, &of_store[..5], "a store with the same events up to there").await?;
            goes_on(&store, &of_other[..5], "a store with the same events up to there").await?;
            is_another(&another, &of_store[5..], &of_other[5..]).await?;
            is_another(&store, &of_other[5..], &of_store[5..]).await?;
        }
    }

    /// S3: A store that ends before a cursor refuses it, and still does when it has reached that version with other
    /// events.
    async fn s3_a_cursor_beyond_the_end_is_refused(env: &Env) {
        let (store, others) = (env.open().await?, env.fresh()?);
        let all = append_history(&store, 20).await?;
        let cursors = cursors_until(&store, 20).await?;
        let shorter = others.open().await?;
        is_another(&shorter, &cursors[1..], &[Cursor::START; 20]).await?;
        append(&shorter, all[..8].to_vec()).await?;
        goes_on(&shorter, &cursors[..9], "a store with the first events").await?;
        is_another(&shorter, &cursors[9..], &[cursors[8]; 12]).await?;
        append_one(&shorter, event("another", "a")).await?;
        append(&shorter, all[9..].to_vec()).await?;
        goes_on(&shorter, &cursors[..9], "a store that has gone on otherwise").await?;
        is_another(&shorter, &cursors[9..], &cursors_until(&shorter, 20).await?[9..]).await?;
    }

    /// S3: After reopening, the store's own cursors are accepted, and those of another history are refused.
    #[needs(Persistence)]
    async fn s3_cursors_are_the_same_after_reopening(env: &Env) {
        let (mut store, others) = (env.open().await?, env.fresh()?);
        let all = append_history(&store, 20).await?;
        let mut another = others.open().await?;
        append(&another, [&[event("another", "a")], &all[1..]].concat()).await?;
        let (cursors, of_other) = (cursors_until(&store, 20).await?, cursors_until(&another, 20).await?);
        for _ in 0..2 {
            (store, another) = (env.reopen(store).await?, others.reopen(another).await?);
            goes_on(&store, &cursors, "a store that was opened again").await?;
            is_another(&another, &cursors[1..], &of_other[1..]).await?;
            append(&store, events(&format!("more-{}", store.latest_version(&background()).await?), "a", 3)).await?;
        }
    }

    /// S3: A backup has the history of its store, until other events are appended to it.
    #[needs(Backup)]
    async fn s3_a_restored_backup_that_goes_on_has_another_history(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let target = env.unused_path();
        store.backup(&background(), &target).await?;
        append(&store, events("later", "a", 10)).await?;
        let cursors = cursors_until(&store, 20).await?;
        let mut backup = env.open_at(&target).await?;
        goes_on(&backup, &cursors[..11], "a backup").await?;
        is_another(&backup, &cursors[11..], &[cursors[10]; 10]).await?;
        append_one(&backup, event("of the backup", "a")).await?;
        append(&backup, events("later", "a", 10)[1..].to_vec()).await?;
        for _ in 0..2 {
            goes_on(&backup, &cursors[..11], "a backup that has gone on").await?;
            is_another(&backup, &cursors[11..], &cursors_until(&backup, 20).await?[11..]).await?;
            if !env.profile.survives_closing() {
                break;
            }
            backup.close().await?;
            drop(backup);
            backup = env.open_at(&target).await?;
        }
    }
}

/// The cursors at each version up to this one.
async fn cursors_until(store: &Store, version: u64) -> Checked<Vec<Cursor>> {
    let mut cursors = Vec::new();
    for version in 0..=version {
        let cursor = store.cursor_at(&background(), version.into()).await?;
        expect_eq!(cursor.version().get(), version, "the version of the cursor that was taken at version {version}");
        cursors.push(cursor);
    }
    Ok(cursors)
}

/// Fails unless the store accepts each of these cursors.
async fn goes_on(store: &Store, cursors: &[Cursor], what: &str) -> Checked {
    for cursor in cursors {
        let checked = store.check_cursor(&background(), *cursor).await;
        ensure!(checked.is_ok(), "going on from the cursor {cursor} of its own history in {what} gives {checked:?}");
    }
    Ok(())
}

/// Fails unless each of the cursors is refused, with the store's own position in the error.
async fn is_another(store: &Store, cursors: &[Cursor], places: &[Cursor]) -> Checked {
    for (cursor, place) in cursors.iter().zip(places) {
        expect_err!(
            store.check_cursor(&background(), *cursor).await,
            Error::HistoryDiverged { cursor: ref refused, ref found } if refused == cursor && found == place,
            "going on from the cursor {cursor} in a store that has {place} there"
        );
    }
    Ok(())
}

/// Writers that append pairs of events of one or another aggregate.
fn write(store: &Store, writers: usize, count: usize) -> Background<()> {
    Background::start((0..writers).map(|writer| {
        let store = store.clone();
        async move {
            for number in 0..count {
                append(&store, events(&format!("{writer}-{number}"), ["a", "b"][number % 2], 2)).await?;
            }
            Ok(())
        }
    }))
}

async fn next(stream: &mut EventStream) -> Checked<RecordedEvent> {
    match stream.next().await {
        Some(event) => Ok(event?),
        None => Err(Failure::new("a stream that had to go on has ended")),
    }
}

/// The events of the stream, up to and including the one with this id.
async fn until(mut stream: EventStream, id: &'static str) -> Checked<Vec<RecordedEvent>> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &RecordedEvent| event.event.id() != id) {
        add_page(&mut seen, vec![next(&mut stream).await?], Direction::Forward)?;
    }
    Ok(seen)
}
