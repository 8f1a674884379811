//! O: one total order, with which every read agrees.

use eventstore_api::limits::MAX_BATCH_BYTES;
use eventstore_api::{
    Batch, Context, Direction, Error, Event, EventStore, EventStoreExt, Expected, Gc, LoadOptions, PageSize,
    RecordedEvent, Version,
};

use crate::check::checks;
use crate::env::Store;
use crate::events::{append, append_history, append_one, background, event, events};
use crate::failure::{Checked, Failure};
use crate::reading::{add_page, audit, first_of, ids, is_prefix, load, load_pages, pages_of, same_events, select};
use crate::tasks::{Background, all_at_once, joined, polled};

checks! {
    /// O1: Versions are 1 to `latest_version` without a gap.
    async fn o1_versions_run_from_one_without_a_gap(env: &Env) {
        let store = env.open().await?;
        let single = append_one(&store, event("single", "a")).await?;
        let batch = append(&store, events("batch", "b", 4)).await?;
        let again = append_one(&store, event("single", "a")).await?;
        let last = append_one(&store, event("last", "a")).await?;
        expect_eq!(single.version, Version::new(1), "the first event of a store");
        let versions: Vec<_> = batch.iter().map(|stored| stored.version.get()).collect();
        expect_eq!(versions, [2, 3, 4, 5], "the versions of a batch after one event");
        expect_eq!(again.version, single.version, "an event that is stored already takes no new version");
        expect_eq!(last.version, Version::new(6), "the version after a batch");
        let all = audit(&store).await?;
        expect_eq!(ids(&all), ["single", "batch-1", "batch-2", "batch-3", "batch-4", "last"], "the whole store");
    }

    /// O1: A refused append takes no version.
    async fn o1_a_refused_append_leaves_no_gap(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let conflict = store.store(&background(), event("conflict", "a"), Expected::NoEvents).await;
        expect_err!(conflict, Error::VersionConflict { .. }, "an append on a condition that does not hold");
        let duplicate = store.store(&background(), event("first", "b"), Expected::Any).await;
        expect_err!(duplicate, Error::DuplicateEvent { .. }, "an append of an id that is taken");
        let ended = Context::background().with_timeout(std::time::Duration::ZERO);
        let late = store.store(&ended, event("late", "a"), Expected::Any).await;
        expect_err!(late, Error::DeadlineExceeded, "an append with a deadline that has passed");
        let next = append_one(&store, event("second", "a")).await?;
        expect_eq!(next.version, Version::new(2), "the version after three refused appends");
        expect_eq!(next.revision.get(), 2, "the revision after three refused appends");
        audit(&store).await?;
    }

    /// O1: The latest version of an empty store is `Version::ZERO`, and an empty batch changes nothing.
    async fn o1_an_empty_store_is_at_version_zero(env: &Env) {
        let store = env.open().await?;
        expect_eq!(store.latest_version(&background()).await?, Version::ZERO, "the latest version of an empty store");
        expect_eq!(
            store.aggregate_revision(&background(), "a").await?.get(),
            0,
            "the revision of an aggregate without events"
        );
        expect_err!(
            store.get(&background(), "x").await,
            Error::EventNotFound { ref id } if id == "x",
            "getting an id that is not stored"
        );
        for options in [LoadOptions::all(), LoadOptions::all().backward(), LoadOptions::all().aggregate("a")] {
            let page = store.load_page(&background(), &options, PageSize::FIRST).await?;
            expect_eq!(page.events, [], "a page of an empty store: {options:?}");
            expect_eq!(page.next, None, "the page after the only one of an empty store: {options:?}");
            expect_eq!(page.head, Version::ZERO, "the head of an empty store: {options:?}");
        }
        for expected in [Expected::Any, Expected::Exists, Expected::Revision(9.into()), Expected::LatestVersion(9.into())] {
            let batch = Batch::new(vec![]).expected(expected);
            expect_eq!(
                store.store_batch(&background(), batch).await?,
                [],
                "an empty batch with the condition {expected}"
            );
        }
        expect_eq!(audit(&store).await?, [], "a store into which only empty batches were appended");
    }

    /// O1: Versions are the same after reopening, and continue from there.
    #[needs(Persistence)]
    async fn o1_versions_are_the_same_after_reopening(env: &Env) {
        let mut store = env.open().await?;
        for round in 1..=3_usize {
            append(&store, events(&format!("round-{round}"), "a", 4)).await?;
            let before = audit(&store).await?;
            store = env.reopen(store).await?;
            same_events(&audit(&store).await?, &before, "the events of a reopened store")?;
            let stored = append_one(&store, event(format!("after-{round}"), "b")).await?;
            expect_eq!(stored.version.get(), before.len() as u64 + 1, "the first version after reopening");
            expect_eq!(stored.revision.get(), round as u64, "the first revision after reopening");
        }
        audit(&store).await?;
    }

    /// O1: Garbage collection changes no event, no version and no look-up, also while events are appended.
    async fn o1_garbage_collection_changes_nothing(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 60).await?;
        let before = audit(&store).await?;
        store.run_gc(&background(), Gc::Quick).await?;
        same_events(&audit(&store).await?, &before, "the events after garbage collection")?;
        let writer = tokio::spawn(write(store.clone(), "writer".to_owned(), 30, 2));
        store.run_gc(&background(), Gc::Quick).await?;
        joined(writer).await??;
        let after = audit(&store).await?;
        same_events(first_of(&after, before.len()), &before, "the events before garbage collection under load")?;
        expect_eq!(after.len(), 120, "the number of events after garbage collection under load");
    }

    /// O1: Each store has its own versions: stores in different places share nothing, even when they are open at the
    /// same time.
    async fn o1_stores_in_different_places_share_nothing(env: &Env) {
        let places = [env.fresh()?, env.fresh()?, env.fresh()?];
        let mut stores = Vec::new();
        for (number, place) in places.iter().enumerate() {
            let store = place.open().await?;
            // The same ids of the same aggregate, with other content in each store, and one more event in each.
            let own = |at| Event::builder("Happened", "a").id(format!("event-{at}")).json(&number).build();
            append(&store, (0..=number).map(own).collect::<Result<Vec<_>, _>>()?).await?;
            stores.push(store);
        }
        for (number, store) in stores.iter().enumerate() {
            let all = audit(store).await?;
            expect_eq!(all.len(), number + 1, "the number of events in the store {number} of three");
            for event in all {
                expect_eq!(event.event.json::<usize>()?, number, "the content of an event of the store {number}");
            }
        }
        let woken = polled(4, stores[0].wait_for_events(&background(), 1.into())).await;
        ensure!(woken.is_none(), "waiting in a store with one event ends because others have more: {woken:?}");
        stores[0].close().await?;
        for store in &stores[1..] {
            append_one(store, event("after another was closed", "a")).await?;
        }
    }

    /// O1: An event keeps its version, its revision and its time while others are appended.
    #[on(Both)]
    async fn o1_an_event_keeps_its_place_while_writers_write(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let mut seen = load(&store, LoadOptions::all()).await?;
        let writers = Background::start((0..4).map(|writer| write(store.clone(), format!("writer-{writer}"), 20, 2)));
        while writers.is_running() {
            let all = load(&store, LoadOptions::all()).await?;
            same_events(first_of(&all, seen.len()), &seen, "the events that an earlier load gave")?;
            seen = all;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        let all = audit(&store).await?;
        same_events(first_of(&all, seen.len()), &seen, "the events that were loaded while writers wrote")?;
    }

    /// O2: The new events of a batch get consecutive versions in the batch's order, despite concurrent appends.
    #[on(Both)]
    async fn o2_a_batch_has_consecutive_versions_in_its_order(env: &Env) {
        let store = env.open().await?;
        let writers = (0..8).map(|writer| {
            let store = store.clone();
            async move {
                for number in 0..12 {
                    let batch: Vec<_> = ["a", "b", "a", "own"]
                        .into_iter()
                        .enumerate()
                        .map(|(at, aggregate)| {
                            let own = if aggregate == "own" { format!("own-{writer}") } else { aggregate.to_owned() };
                            event(format!("{writer}-{number}-{at}"), &own)
                        })
                        .collect();
                    let expected: Vec<_> = batch.iter().map(|event| event.id().to_owned()).collect();
                    let stored = append(&store, batch).await?;
                    let first = stored[0].version;
                    for (at, stored) in (0_u64..).zip(&stored) {
                        expect_eq!(stored.version.get(), first.get() + at, "the version of the event {at} of a batch");
                    }
                    let options = LoadOptions::since(Version::new(first.get().saturating_sub(1))).limit(4);
                    let loaded = load(&store, options).await?;
                    expect_eq!(ids(&loaded), expected, "what is stored where the batch was stored");
                    for (stored, loaded) in stored.iter().zip(&loaded) {
                        expect_eq!(stored.version, loaded.version, "the version that an append returned");
                        expect_eq!(stored.revision.get(), loaded.revision.get(), "the revision that an append returned");
                    }
                }
                Ok(())
            }
        });
        all_at_once(writers).await?;
        expect_eq!(audit(&store).await?.len(), 8 * 12 * 4, "the number of events");
    }

    /// O3: The revisions of an aggregate are 1 to n without a gap, in version order.
    #[on(Both)]
    async fn o3_revisions_count_each_aggregate_in_version_order(env: &Env) {
        let store = env.open().await?;
        let mixed = ["a", "b", "a", "a", "b", "c"].into_iter().zip(1..).map(|(a, n)| event(format!("first-{n}"), a));
        let stored = append(&store, mixed.collect::<Vec<_>>()).await?;
        let revisions: Vec<_> = stored.iter().map(|stored| stored.revision.get()).collect();
        expect_eq!(revisions, [1, 1, 2, 3, 2, 1], "the revisions of a batch of three aggregates");
        let writers = (0..6).map(|writer| {
            let store = store.clone();
            async move {
                for number in 0..20 {
                    let aggregate = ["a", "b", "c"][(writer + number) % 3];
                    append(&store, events(&format!("{writer}-{number}"), aggregate, 1 + number % 2)).await?;
                }
                Ok(())
            }
        });
        all_at_once(writers).await?;
        // The audit checks the revisions of everything.
        expect_eq!(audit(&store).await?.len(), 6 + 6 * 30, "the number of events");
    }

    /// O3: A refused append creates no aggregate: it has no revision, no events, and is not counted.
    async fn o3_a_refused_append_makes_no_aggregate(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let conflict = Batch::from(event("new-1", "new")).expected(Expected::Exists);
        let outcome = store.store_batch(&background(), conflict).await;
        expect_err!(outcome, Error::VersionConflict { .. }, "an append that wants a new aggregate to exist");
        let duplicate = vec![event("new-1", "new"), event("first", "new")];
        let outcome = store.store_batch(&background(), duplicate.into()).await;
        expect_err!(outcome, Error::DuplicateEvent { .. }, "an append whose second event has an id that is taken");
        let revision = store.aggregate_revision(&background(), "new").await?.get();
        expect_eq!(revision, 0, "the revision of an aggregate whose only appends were refused");
        let stats = store.stats(&background()).await?;
        expect_eq!(stats.aggregates, 1, "the number of aggregates after refused appends to a second");
        let stored = append(&store, Batch::from(event("new-1", "new")).expected(Expected::NoEvents)).await?;
        expect_eq!(stored[0].revision.get(), 1, "the first revision after refused appends");
        audit(&store).await?;
    }

    /// O3: `aggregate_revision` never goes back, and never counts an event that cannot be loaded.
    #[on(Both)]
    async fn o3_the_revision_counts_what_can_be_loaded_while_writers_write(env: &Env) {
        let store = env.open().await?;
        let writers = Background::start((0..4).map(|writer| write(store.clone(), format!("writer-{writer}"), 40, 2)));
        let mut last = 0;
        while writers.is_running() {
            let revision = store.aggregate_revision(&background(), "a").await?.get();
            ensure!(revision >= last, "the revision of an aggregate went back from {last} to {revision}");
            let newest = load(&store, LoadOptions::all().aggregate("a").backward().limit(1)).await?;
            let loaded = newest.first().map_or(0, |event| event.revision.get());
            ensure!(loaded >= revision, "the revision is {revision}, but the newest event has only {loaded}");
            last = revision;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        audit(&store).await?;
    }

    /// O4: `load` since a version returns exactly the events with a greater version, ascending.
    async fn o4_a_load_gives_exactly_what_is_after_the_version(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 20).await?;
        let all = audit(&store).await?;
        for since in (0..=23).chain([u64::MAX - 1, u64::MAX]) {
            let loaded = load(&store, Version::new(since)).await?;
            let expected: Vec<_> = all.iter().filter(|event| event.version.get() > since).cloned().collect();
            same_events(&loaded, &expected, &format!("a load since version {since}"))?;
        }
    }

    /// O5: A load while events are appended shows a prefix: never event N + 1 without event N.
    #[on(Both)]
    async fn o5_a_load_while_writers_write_shows_a_prefix(env: &Env) {
        let store = env.open().await?;
        let writers = Background::start((0..4).map(|writer| write(store.clone(), format!("writer-{writer}"), 40, 3)));
        let mut loads = 0_usize;
        while writers.is_running() || loads < 3 {
            let acknowledged = store.latest_version(&background()).await?;
            let loaded = match loads % 3 {
                0 => load(&store, LoadOptions::all()).await?,
                1 => load_pages(&store, LoadOptions::all(), pages_of(7)).await?,
                _ => {
                    let mut backward = load_pages(&store, LoadOptions::all().backward(), pages_of(7)).await?;
                    backward.reverse();
                    backward
                }
            };
            is_prefix(&loaded)?;
            ensure!(
                loaded.len() as u64 >= acknowledged.get(),
                "a load that began at version {acknowledged} shows only {} events (O6)",
                loaded.len()
            );
            loads += 1;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        expect_eq!(audit(&store).await?.len(), 4 * 40 * 3, "the number of events");
    }

    /// O5: A load shows the store as of its first page, and ends there, even if writers never stop.
    async fn o5_a_load_ends_while_writers_never_stop(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 30).await?;
        for options in [LoadOptions::all(), LoadOptions::all().aggregate("a"), LoadOptions::since(4.into()).limit(1000)]
        {
            let first = store.load_page(&background(), &options, pages_of(2)).await?;
            let mut seen = first.events;
            let mut next = first.next;
            while let Some(options) = next {
                // One more event for every page: a load that follows the writers would never end.
                let number = seen.len();
                append_one(&store, event(format!("{}-{}-{number}", first.head, options.since), "a")).await?;
                let page = store.load_page(&background(), &options, pages_of(1)).await?;
                seen.extend(page.events);
                next = page.next;
                ensure!(seen.len() as u64 <= first.head.get(), "a load goes on beyond the head of its first page");
            }
            let expected = select(&load(&store, LoadOptions::all()).await?, &options.clone().before(first.head.next()));
            same_events(&seen, &expected, &format!("a load shows the store as of its first page: {options:?}"))?;
        }
    }

    /// O5: A load of one aggregate while events are appended shows a prefix of the aggregate, in either direction.
    #[on(Both)]
    async fn o5_a_load_of_an_aggregate_while_writers_write_shows_its_prefix(env: &Env) {
        let store = env.open().await?;
        let writers = Background::start((0..4).map(|writer| write(store.clone(), format!("writer-{writer}"), 40, 3)));
        let mut loads = 0_usize;
        while writers.is_running() || loads < 3 {
            let acknowledged = store.aggregate_revision(&background(), "a").await?.get();
            let every = LoadOptions::all().aggregate("a");
            let mut loaded = match loads % 3 {
                0 => load(&store, every).await?,
                1 => load_pages(&store, every, pages_of(4)).await?,
                _ => load_pages(&store, every.backward(), pages_of(4)).await?,
            };
            if loads % 3 == 2 {
                loaded.reverse();
            }
            let revisions: Vec<_> = loaded.iter().map(|event| event.revision.get()).collect();
            let expected: Vec<_> = (1..=revisions.len() as u64).collect();
            expect_eq!(revisions, expected, "the revisions of an aggregate that is written to");
            let count = revisions.len() as u64;
            ensure!(count >= acknowledged, "a load that began at revision {acknowledged} shows only {count} events");
            loads += 1;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        audit(&store).await?;
    }

    /// O5: Every page has the latest version as its head, whatever is requested and however little is found.
    async fn o5_every_page_tells_the_latest_version_as_its_head(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 9).await?;
        let every = LoadOptions::all();
        for options in [
            every.clone(),
            every.clone().backward(),
            every.clone().limit(0),
            every.clone().limit(2),
            every.clone().before(4.into()),
            every.clone().before(Version::ZERO),
            every.clone().before(u64::MAX.into()),
            every.clone().aggregate("a"),
            every.clone().aggregate("nobody"),
            every.aggregate("b").backward().limit(1),
            LoadOptions::since(9.into()),
            LoadOptions::since(u64::MAX.into()),
        ] {
            for size in [pages_of(1), PageSize::FIRST] {
                let page = store.load_page(&background(), &options, size).await?;
                expect_eq!(page.head, Version::new(9), "the head of a page of nine events with {options:?}");
            }
        }
    }

    /// O6: A caller that was woken by an append sees it.
    #[on(Both)]
    async fn o6_who_was_woken_sees_what_woke_it(env: &Env) {
        let store = env.open().await?;
        let followers = Background::start((0..4).map(|_| {
            let store = store.clone();
            async move {
                let mut last = Version::ZERO;
                while last < Version::new(60) {
                    let reached = store.wait_for_events(&background(), last).await?;
                    let there = LoadOptions::since(Version::new(reached.get().saturating_sub(1))).limit(1);
                    let page = store.load_page(&background(), &there, PageSize::FIRST).await?;
                    let version = page.events.first().map(|event| event.version);
                    expect_eq!(version, Some(reached), "the event at the version that waiting ended with");
                    let latest = store.latest_version(&background()).await?;
                    ensure!(latest >= reached, "`latest_version` is {latest} after waiting ended with {reached}");
                    last = reached;
                }
                Ok(())
            }
        }));
        for number in 0..60 {
            append_one(&store, event(format!("event-{number}"), "a")).await?;
            if number % 3 == 0 {
                tokio::task::yield_now().await;
            }
        }
        followers.finish().await?;
    }

    /// O6: Other threads and runtimes see the same store: what one appends, the other reads and is woken for.
    #[on(Both)]
    async fn o6_other_threads_and_runtimes_see_the_same_store(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("here-1", "here")).await?;
        let there = store.clone();
        let first = on_another_runtime(move || async move {
            let seen = load(&there, LoadOptions::all()).await?;
            expect_eq!(ids(&seen), ["here-1"], "what another runtime loads of an event that was appended before");
            append_one(&there, event("there-1", "there")).await.map(drop)
        });
        joined(first).await??;
        let seen = load(&store, LoadOptions::all()).await?;
        expect_eq!(ids(&seen), ["here-1", "there-1"], "what is loaded of an event that another runtime appended");
        // They wake each other in turn.
        let there = store.clone();
        let second = on_another_runtime(move || async move {
            let reached = there.wait_for_events(&background(), 2.into()).await?;
            expect_eq!(reached, Version::new(3), "the version that wakes another runtime");
            there.get(&background(), "here-2").await?;
            append_one(&there, event("there-2", "there")).await.map(drop)
        });
        let here = store.clone();
        let waiting = Background::start([async move { Ok(here.wait_for_events(&background(), 3.into()).await?) }]);
        append_one(&store, event("here-2", "here")).await?;
        joined(second).await??;
        expect_eq!(waiting.finish().await?, [Version::new(4)], "the version with which another runtime wakes this one");
        audit(&store).await?;
    }

    /// O6: A read that begins after an append has returned sees what was appended, in every way of reading.
    #[on(Both)]
    async fn o6_a_read_after_an_append_sees_it(env: &Env) {
        let store = env.open().await?;
        let pairs = (0..6).map(|writer| {
            let store = store.clone();
            async move {
                for number in 0..15_u64 {
                    let own = format!("own-{writer}");
                    let stored = append_one(&store, event(format!("{writer}-{number}"), &own)).await?;
                    // Another task reads: what counts is that the append has returned, not who made it.
                    let reader = tokio::spawn(sees(store.clone(), stored, format!("{writer}-{number}"), own));
                    joined(reader).await??;
                }
                Ok(())
            }
        });
        all_at_once(pairs).await?;
        audit(&store).await?;
    }

    /// O7: `latest_version` never goes back and equals the number of events.
    #[on(Both)]
    async fn o7_latest_version_never_goes_back_and_counts_the_events(env: &Env) {
        let store = env.open().await?;
        let writers = Background::start((0..4).map(|writer| write(store.clone(), format!("writer-{writer}"), 40, 2)));
        watch(&store, &writers).await?;
        writers.finish().await?;
        let latest = store.latest_version(&background()).await?;
        expect_eq!(latest, Version::new(4 * 40 * 2), "the latest version after all writers are done");
        let stats = store.stats(&background()).await?;
        expect_eq!(stats.latest_version, latest, "the latest version in the statistics");
        expect_eq!(audit(&store).await?.len(), 4 * 40 * 2, "the number of events");
    }

    /// O8: `load_by_aggregate` returns what `load` returns, filtered by the aggregate, for any aggregate ids.
    async fn o8_a_load_by_aggregate_is_the_load_filtered(env: &Env) {
        let store = env.open().await?;
        let aggregates = super::writing::awkward_names();
        for round in 0..3 {
            for (at, aggregate) in aggregates.iter().enumerate() {
                if (at + round) % 4 > 0 {
                    append_one(&store, event(format!("{round}-{at}"), aggregate)).await?;
                }
            }
        }
        let all = audit(&store).await?;
        let middle = Version::new(all.len() as u64 / 2);
        for aggregate in &aggregates {
            let every = LoadOptions::all().aggregate(aggregate.as_str());
            for options in [
                every.clone(),
                every.clone().backward(),
                LoadOptions::since(middle).aggregate(aggregate.as_str()),
                every.clone().before(middle),
                every.clone().limit(2),
                every.clone().backward().limit(1).before(middle),
            ] {
                let expected = select(&all, &options);
                same_events(&load(&store, options.clone()).await?, &expected, &format!("a load with {options:?}"))?;
                let paged = load_pages(&store, options.clone(), pages_of(1)).await?;
                same_events(&paged, &expected, &format!("a load in pages of one event with {options:?}"))?;
            }
            let loaded = store.load_by_aggregate(&background(), aggregate.as_str(), middle).into_vec().await?;
            same_events(
                &loaded,
                &select(&all, &LoadOptions::since(middle).aggregate(aggregate.as_str())),
                "load_by_aggregate since a version",
            )?;
        }
    }

    /// O8: Looking for something that cannot exist finds nothing; the only error is `EventNotFound`.
    async fn o8_looking_for_what_cannot_be_there_finds_nothing(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 6).await?;
        for name in [String::new(), "x".repeat(256), "x".repeat(481), "x".repeat(70_000), "A".to_owned()] {
            let length = name.len();
            expect_err!(
                store.get(&background(), &name).await,
                Error::EventNotFound { ref id } if *id == name,
                "getting an id of {length} bytes that is not there"
            );
            let revision = store.aggregate_revision(&background(), &name).await?.get();
            expect_eq!(revision, 0, "the revision of an aggregate id of {length} bytes that is not there");
            for options in [LoadOptions::all().aggregate(&name), LoadOptions::all().aggregate(&name).backward()] {
                let loaded = load(&store, options).await?;
                expect_eq!(loaded, [], "the events of an aggregate id of {length} bytes that is not there");
            }
        }
    }

    /// O9: Loads go forward and backward, with bounds and limits, in pages of any size.
    async fn o9_loads_keep_direction_bounds_and_limits(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 9).await?;
        let all = audit(&store).await?;
        let bounds = [None, Some(0), Some(1), Some(2), Some(5), Some(9), Some(10), Some(11), Some(u64::MAX)];
        for since in [0, 1, 4, 8, 9, 10, u64::MAX] {
            for before in bounds {
                for limit in [None, Some(0), Some(1), Some(3), Some(9), Some(u64::MAX)] {
                    for backward in [false, true] {
                        for aggregate in [None, Some("a")] {
                            let mut options = LoadOptions::since(since.into());
                            options.before = before.map(Version::new);
                            options.limit = limit;
                            options.aggregate_id = aggregate.map(str::to_owned);
                            if backward {
                                options = options.backward();
                            }
                            let expected = select(&all, &options);
                            let what = format!("a load with {options:?}");
                            same_events(&load(&store, options.clone()).await?, &expected, &what)?;
                            let paged = load_pages(&store, options, pages_of(2)).await?;
                            same_events(&paged, &expected, &format!("{what} in pages of two"))?;
                        }
                    }
                }
            }
        }
    }

    /// O9: Following `next` returns the same events for pages of any size. A page has at least one event if any
    /// matches.
    async fn o9_pages_of_any_size_give_the_same_events(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 40).await?;
        append_one(&store, Event::builder("Large", "a").id("large").data(vec![7; 300_000]).build()?).await?;
        append(&store, events("small", "b", 5)).await?;
        let all = audit(&store).await?;
        let mut sizes: Vec<_> = [1, 2, 7, 45, 46, 47, 1000].map(pages_of).into();
        // A page ends with the event that reaches its size, so it has one event even if that is larger than the page.
        sizes.extend([0, 1, 100, 1000, 256 << 10].map(|bytes| PageSize::new(10_000, bytes)));
        sizes.extend([PageSize::FIRST, PageSize::LARGEST, PageSize::new(usize::MAX, usize::MAX)]);
        for size in sizes {
            let every = LoadOptions::all();
            for options in [every.clone(), every.clone().backward(), every.clone().aggregate("a"), every.limit(44)] {
                let loaded = load_pages(&store, options.clone(), size).await?;
                same_events(&loaded, &select(&all, &options), &format!("pages of {size:?} with {options:?}"))?;
            }
        }
        let page = store.load_page(&background(), &LoadOptions::all(), PageSize::new(10_000, 1)).await?;
        expect_eq!(page.events.len(), 1, "the events of a page that one event fills");
    }

    /// O9: A page size of no events counts as one event.
    async fn o9_a_page_of_no_events_is_taken_as_one(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 7).await?;
        let all = audit(&store).await?;
        for size in [PageSize::new(0, MAX_BATCH_BYTES), PageSize::new(0, 0)] {
            let every = LoadOptions::all();
            for options in [every.clone(), every.clone().backward(), every.aggregate("a")] {
                let page = store.load_page(&background(), &options, size).await?;
                expect_eq!(page.events.len(), 1, "the events of a page of {size:?} with {options:?}");
                let loaded = load_pages(&store, options.clone(), size).await?;
                same_events(&loaded, &select(&all, &options), &format!("pages of {size:?} with {options:?}"))?;
            }
        }
    }

    /// O9: A page ends with the event that reaches its size in bytes, so that its memory is bounded.
    async fn o9_a_page_ends_with_the_event_that_fills_it(env: &Env) {
        let store = env.open().await?;
        let sized = |number: usize| {
            let data = vec![b'x'; number % 7 * 100];
            Event::builder("Sized", ["a", "b"][number % 2]).id(format!("event-{number}")).data(data).build()
        };
        append(&store, (0..80).map(sized).collect::<Result<Vec<_>, _>>()?).await?;
        for bytes in [2, 100, 700, 3_000, 12_000] {
            let size = PageSize::new(10_000, bytes);
            let every = LoadOptions::all();
            for options in [every.clone(), every.clone().backward(), every.aggregate("b")] {
                let page = store.load_page(&background(), &options, size).await?;
                let [before @ .., _] = page.events.as_slice() else {
                    return Err(Failure::new(format!("a page of {bytes} bytes has no event: {options:?}")));
                };
                let taken: usize = before.iter().map(|event| event.event.len_bytes()).sum();
                ensure!(taken < bytes, "a page of {bytes} bytes goes on after events of {taken} bytes: {options:?}");
            }
        }
    }

    /// O9: A page that is read again is the same, even if there are more events by then.
    async fn o9_a_page_that_is_read_again_is_the_same(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 20).await?;
        for options in [LoadOptions::all(), LoadOptions::all().backward(), LoadOptions::all().aggregate("a")] {
            let mut next = Some(options);
            while let Some(options) = next {
                let first = store.load_page(&background(), &options, pages_of(3)).await?;
                // The end of the first page is not fixed yet; that of all others is.
                if options.before.is_some() {
                    append_one(&store, event(format!("later than {options:?}"), "a")).await?;
                    let again = store.load_page(&background(), &options, pages_of(3)).await?;
                    same_events(&again.events, &first.events, &format!("a page that is read again: {options:?}"))?;
                    expect_eq!(again.next, first.next, "what follows a page that is read again: {options:?}");
                }
                next = first.next;
            }
        }
    }

    /// O9: The next page can be read after the store was closed and reopened.
    #[needs(Persistence)]
    async fn o9_the_next_page_can_be_read_after_reopening(env: &Env) {
        let mut store = env.open().await?;
        append_history(&store, 12).await?;
        let all = audit(&store).await?;
        for options in [LoadOptions::all(), LoadOptions::all().backward(), LoadOptions::all().aggregate("a").limit(5)] {
            let (mut seen, mut next): (Vec<RecordedEvent>, _) = (Vec::new(), Some(options.clone()));
            while let Some(options) = next {
                let page = store.load_page(&background(), &options, pages_of(4)).await?;
                add_page(&mut seen, page.events, options.direction)?;
                next = page.next;
                store = env.reopen(store).await?;
            }
            same_events(&seen, &select(&all, &options), &format!("a load over several openings: {options:?}"))?;
        }
    }

    /// O9: Paging forward with the last version seen misses nothing and repeats nothing while events are appended.
    #[on(Both)]
    async fn o9_paging_with_the_last_version_misses_nothing_while_writers_write(env: &Env) {
        let store = env.open().await?;
        let total = 4 * 40 * 3;
        let writers = Background::start((0..4).map(|writer| write(store.clone(), format!("writer-{writer}"), 40, 3)));
        let readers = [1, 2, 7].map(|size| {
            let store = store.clone();
            async move {
                let mut seen = Vec::new();
                while seen.len() < total {
                    let last = seen.last().map_or(Version::ZERO, |event: &RecordedEvent| event.version);
                    store.wait_for_events(&background(), last).await?;
                    let page = store.load_page(&background(), &LoadOptions::since(last), pages_of(size)).await?;
                    ensure!(!page.events.is_empty(), "no page after version {last} although there are events (O6)");
                    seen.extend(page.events);
                    is_prefix(&seen)?;
                }
                Ok(seen)
            }
        });
        let seen = all_at_once(readers).await?;
        writers.finish().await?;
        let all = audit(&store).await?;
        for seen in seen {
            same_events(&seen, &all, "what a reader saw that paged while writers wrote")?;
        }
    }

    /// O9: Paging backward with the last version seen misses nothing and repeats nothing while events are appended.
    #[on(Both)]
    async fn o9_paging_backward_misses_nothing_while_writers_write(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 50).await?;
        let writers = Background::start((0..3).map(|writer| write(store.clone(), format!("writer-{writer}"), 30, 3)));
        let mut rounds = 0_usize;
        while writers.is_running() || rounds < 3 {
            let size = pages_of([1, 2, 7][rounds % 3]);
            let head = store.latest_version(&background()).await?;
            let mut seen = Vec::new();
            let mut before = head.next();
            loop {
                let options = LoadOptions::all().backward().before(before).limit(20);
                let page = store.load_page(&background(), &options, size).await?;
                let Some(last) = page.events.last() else { break };
                before = last.version;
                add_page(&mut seen, page.events, Direction::Backward)?;
            }
            seen.reverse();
            is_prefix(&seen)?;
            expect_eq!(seen.len() as u64, head.get(), "the events below the version where paging backward began");
            rounds += 1;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        audit(&store).await?;
    }
}

/// Runs a part of a check on a separate thread and runtime.
fn on_another_runtime<F, Fut>(part: F) -> tokio::task::JoinHandle<Checked>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Checked>,
{
    tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(part())
    })
}

/// Appends `count` batches of `size` events in sequence.
async fn write(store: Store, name: String, count: usize, size: usize) -> Checked {
    for number in 0..count {
        append(&store, events(&format!("{name}-{number}"), ["a", "b", "c"][number % 3], size)).await?;
    }
    Ok(())
}

/// Fails unless every way of reading shows the event at its position.
async fn sees(store: Store, stored: eventstore_api::Stored, id: String, own: String) -> Checked {
    let ctx = background();
    let latest = store.latest_version(&ctx).await?;
    ensure!(latest >= stored.version, "`latest_version` is {latest} after version {} was appended", stored.version);
    let waited = store.wait_for_events(&ctx, Version::new(stored.version.get().saturating_sub(1))).await?;
    ensure!(waited >= stored.version, "`wait_for_events` gives {waited} after version {}", stored.version);
    let got = store.get(&ctx, &id).await?;
    expect_eq!(got.version, stored.version, "the version of the event that `get` gives after its append");
    let revision = store.aggregate_revision(&ctx, &own).await?.get();
    expect_eq!(revision, stored.revision.get(), "the revision of the aggregate after the append");
    let newest = load(&store, LoadOptions::all().aggregate(own).backward().limit(1)).await?;
    expect_eq!(ids(&newest), [&id], "the newest event of the aggregate after the append");
    let there = load(&store, LoadOptions::since(Version::new(stored.version.get().saturating_sub(1))).limit(1)).await?;
    expect_eq!(ids(&there), [&id], "the event at the version that the append returned");
    Ok(())
}

/// Fails if `latest_version` goes back, or shows a version that cannot be loaded.
async fn watch(store: &Store, writers: &Background<()>) -> Checked {
    let mut last = Version::ZERO;
    while writers.is_running() {
        let latest = store.latest_version(&background()).await?;
        ensure!(latest >= last, "`latest_version` went back from {last} to {latest}");
        if latest > last {
            let newest = LoadOptions::since(Version::new(latest.get().saturating_sub(1))).limit(1);
            let page = store.load_page(&background(), &newest, PageSize::FIRST).await?;
            let Some(event) = page.events.first() else {
                return Err(Failure::new(format!("`latest_version` is {latest}, but there is no such event")));
            };
            expect_eq!(event.version, latest, "the event at the latest version");
        }
        last = latest;
        tokio::task::yield_now().await;
    }
    Ok(())
}
