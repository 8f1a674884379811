//! W: what an append does, and what it never does.

use std::time::{Duration, SystemTime};

use eventstore_api::limits::{
    MAX_AGGREGATE_ID_LEN, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_DATA_LEN, MAX_ID_LEN, MAX_METADATA_LEN, MAX_TYPE_LEN,
    RECORDED_AT_END,
};
use eventstore_api::{
    Actual, Batch, Context, Durability, Error, Event, EventStore, EventStoreExt, Expected, Gc, Idempotency,
    LoadOptions, RecordedEvent, StoreOutcome, Stored, Version,
};

use crate::check::checks;
use crate::env::Store;
use crate::events::{append, append_history, append_one, background, conditions, event, events, found_in};
use crate::failure::{Checked, Failure};
use crate::reading::{audit, behind, first_of, ids, load, same_events};
use crate::tasks::{Background, all_at_once, at_once};

checks! {
    /// W1: Readers see a batch whole or not at all.
    #[on(Both)]
    async fn w1_readers_see_a_batch_whole_or_not_at_all(env: &Env) {
        let store = env.open().await?;
        let writers = Background::start((0..3).map(|writer| {
            let store = store.clone();
            async move {
                for number in 0..40 {
                    append(&store, events(&format!("{writer}-{number}"), "shared", 5)).await?;
                }
                Ok(())
            }
        }));
        let mut rounds = 0_usize;
        while writers.is_running() || rounds < 3 {
            let ctx = background();
            let latest = store.latest_version(&ctx).await?.get();
            expect_eq!(latest % 5, 0, "the latest version {latest}, when all batches have five events, modulo five");
            let revision = store.aggregate_revision(&ctx, "shared").await?.get();
            expect_eq!(revision % 5, 0, "the revision {revision}, when all batches have five events, modulo five");
            let all = load(&store, LoadOptions::all()).await?;
            expect_eq!(all.len() % 5, 0, "the number of events in a load, when all batches have five, modulo five");
            let one = load(&store, LoadOptions::all().aggregate("shared")).await?;
            expect_eq!(
                one.len() % 5,
                0,
                "the number of events of the aggregate, when all batches have five, modulo five"
            );
            if let Some(last) = all.last() {
                // The first and the last event of the newest batch, the last first.
                for id in [last.event.id(), &format!("{}1", last.event.id().trim_end_matches('5'))] {
                    store.get(&ctx, id).await?;
                }
            }
            let id = format!("{}-{}", rounds % 3, rounds % 40);
            if store.get(&ctx, &format!("{id}-1")).await.is_ok() {
                let last = store.get(&ctx, &format!("{id}-5")).await;
                ensure!(last.is_ok(), "`get` shows the first event of a batch but not the last: {last:?}");
            }
            rounds += 1;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        expect_eq!(audit(&store).await?.len(), 3 * 40 * 5, "the number of events");
    }

    /// W1: A batch with a refused event writes nothing.
    async fn w1_a_batch_with_a_refused_event_writes_nothing(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("taken", "a")).await?;
        for place in 0..4 {
            let mut batch = events("new", "b", 3);
            batch.insert(place, event("taken", "b"));
            expect_err!(
                store.store_batch(&background(), batch.into()).await,
                Error::DuplicateEvent { ref id, .. } if id == "taken",
                "a batch whose event {place} has an id that is taken"
            );
            only_has(&store, &["taken"]).await?;
        }
        append(&store, events("new", "b", 3)).await?;
        only_has(&store, &["taken", "new-1", "new-2", "new-3"]).await?;
    }

    /// W1: A batch whose condition does not hold writes nothing.
    async fn w1_a_batch_whose_condition_fails_writes_nothing(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let batch = Batch::new(events("new", "a", 3)).expected(Expected::NoEvents);
        let refused = store.store_batch(&background(), batch).await;
        expect_err!(refused, Error::VersionConflict { .. }, "a batch whose condition does not hold");
        only_has(&store, &["first"]).await?;
    }

    /// W1: Readers see a batch over several aggregates in all of them or in none.
    #[on(Both)]
    async fn w1_a_batch_over_several_aggregates_is_seen_whole(env: &Env) {
        let store = env.open().await?;
        let writers = Background::start((0..3).map(|writer| {
            let store = store.clone();
            async move {
                for number in 0..40 {
                    let part = |part: usize| event(format!("{writer}-{number}-{part}"), &format!("part-{part}"));
                    append(&store, (0..5).map(part).collect::<Vec<_>>()).await?;
                }
                Ok(())
            }
        }));
        let mut rounds = 0;
        while writers.is_running() || rounds < 3 {
            // Later reads may return more, never less.
            let first = store.aggregate_revision(&background(), "part-0").await?.get();
            let last = store.aggregate_revision(&background(), "part-4").await?.get();
            ensure!(last >= first, "batches are in the aggregate of their first event, but not of their last: {first}, {last}");
            let all = load(&store, LoadOptions::all()).await?;
            expect_eq!(all.len() % 5, 0, "the number of events in a load, when all batches have five, modulo five");
            rounds += 1;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        expect_eq!(audit(&store).await?.len(), 3 * 40 * 5, "the number of events");
    }

    /// W1: Readers see a batch of thousands whole or not at all.
    #[on(Both)]
    async fn w1_a_batch_of_thousands_is_seen_whole(env: &Env) {
        let store = env.open().await?;
        let writer = Background::start([{
            let store = store.clone();
            async move {
                for number in 0..3 {
                    append(&store, events(&format!("batch-{number}"), "a", 3_000)).await?;
                }
                Ok(())
            }
        }]);
        while writer.is_running() {
            let latest = store.latest_version(&background()).await?.get();
            expect_eq!(latest % 3_000, 0, "the latest version {latest}, when all batches have 3,000 events, modulo 3,000");
            let newest = load(&store, LoadOptions::all().aggregate("a").backward().limit(1)).await?;
            let revision = newest.first().map_or(0, |event| event.revision.get());
            expect_eq!(revision % 3_000, 0, "the newest revision {revision}, modulo 3,000");
            tokio::task::yield_now().await;
        }
        writer.finish().await?;
        expect_eq!(load(&store, LoadOptions::all()).await?.len(), 9_000, "the number of events");
    }

    /// W1: A batch of thousands whose last event is refused writes nothing.
    async fn w1_a_batch_of_thousands_refused_at_its_end_writes_nothing(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("taken", "a")).await?;
        let new = events("new", "b", MAX_BATCH_EVENTS - 1);
        for (what, last) in [("stored", event("taken", "b")), ("in the batch", event("new-1", "c"))] {
            let batch = [new.as_slice(), &[last]].concat();
            expect_err!(
                store.store_batch(&background(), batch.into()).await,
                Error::DuplicateEvent { .. },
                "a batch of {MAX_BATCH_EVENTS} events whose last has an id that is {what}"
            );
            only_has(&store, &["taken"]).await?;
        }
    }

    /// W2: An event that is stored with identical content is not written again; the append returns its first position.
    async fn w2_a_repeated_event_returns_its_first_place(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 5).await?;
        let first = append_one(&store, event("one", "a")).await?;
        expect_eq!(first.outcome, StoreOutcome::Written, "the outcome of the first append");
        let there = store.get(&background(), "one").await?;
        expect_eq!(
            (there.version, there.revision.get()),
            (first.version, first.revision.get()),
            "the place of the event in the store, and the place that its append returned"
        );
        append(&store, events("later", "a", 3)).await?;
        for _ in 0..3 {
            let again = append_one(&store, event("one", "a")).await?;
            expect_eq!(again, already(first), "the place of a repeated event");
        }
        let durably = Batch::from(event("one", "a")).durability(Durability::Sync);
        expect_eq!(append(&store, durably).await?, [already(first)], "the place of an event repeated with `Sync`");
        expect_eq!(audit(&store).await?.len(), 9, "the number of events after the repetitions");
    }

    /// W2: A repeated batch writes nothing and returns the first positions, in the order of the repetition.
    async fn w2_a_repeated_batch_returns_its_first_places(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 5).await?;
        let mut batch = events("batch", "a", 4);
        let mut first = append(&store, batch.clone()).await?;
        append(&store, events("later", "a", 2)).await?;
        for stored in &mut first {
            *stored = already(*stored);
        }
        expect_eq!(append(&store, batch.clone()).await?, first, "the places of a repeated batch");
        batch.reverse();
        first.reverse();
        expect_eq!(append(&store, batch.clone()).await?, first, "the places of a repeated batch in another order");
        expect_eq!(append(&store, batch[1..3].to_vec()).await?, first[1..3], "the places of a part of a batch");
        expect_eq!(audit(&store).await?.len(), 11, "the number of events after the repetitions");
    }

    /// W2: The same event twice in one batch is written once.
    async fn w2_a_repetition_inside_one_batch_is_written_once(env: &Env) {
        let store = env.open().await?;
        let (x, y) = (event("x", "a"), event("y", "a"));
        let batch = Batch::new(vec![x.clone(), y.clone(), x.clone(), x, y]).expected(Expected::NoEvents);
        let stored = append(&store, batch).await?;
        let place = |number, outcome| Stored::new(Version::new(number), number.into(), outcome);
        let (written, there) = (StoreOutcome::Written, StoreOutcome::AlreadyStored);
        expect_eq!(
            stored,
            [place(1, written), place(2, written), place(1, there), place(1, there), place(2, there)],
            "the places of the events x, y, x, x, y"
        );
        only_has(&store, &["x", "y"]).await?;
    }

    /// W2: The same id twice in one batch, with different content, is `DuplicateEvent`, and nothing is written.
    async fn w2_other_content_inside_one_batch_is_a_duplicate(env: &Env) {
        let store = env.open().await?;
        for other in others("same", "a") {
            let batch = vec![event("before", "a"), event("same", "a"), other.clone(), event("after", "a")];
            expect_err!(
                store.store_batch(&background(), batch.into()).await,
                Error::DuplicateEvent { ref id, version: None } if id == "same",
                "a batch with an event and {other:?}"
            );
            only_has(&store, &[]).await?;
        }
    }

    /// W2: The same id with another type, aggregate, metadata or data is `DuplicateEvent`, with the version of the
    /// stored event.
    async fn w2_the_same_id_with_other_content_is_a_duplicate(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let first = append_one(&store, event("same", "a")).await?;
        for other in others("same", "a") {
            let refused = store.store_batch(&background(), other.clone().into()).await;
            expect_err!(
                refused,
                Error::DuplicateEvent { ref id, version: Some(version) } if id == "same" && version == first.version,
                "an append of {other:?} when the id is stored with other content"
            );
        }
        let again = append_one(&store, event("same", "a")).await?;
        expect_eq!(again, already(first), "the place of the first event after the duplicates");
        expect_eq!(audit(&store).await?.len(), 4, "the number of events after the duplicates");
    }

    /// W2: A duplicate is found before any condition is checked, whether the condition holds or not.
    async fn w2_a_duplicate_is_found_before_the_condition(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let first = append_one(&store, event("same", "x")).await?;
        for (condition, _) in conditions(1, 4) {
            let other = Event::builder("Other", "x").id("same").build()?;
            for batch in [vec![other.clone()], vec![event("new", "x"), other.clone()], vec![other, event("new", "x")]] {
                let count = batch.len();
                expect_err!(
                    store.store_batch(&background(), Batch::new(batch).expected(condition)).await,
                    Error::DuplicateEvent { ref id, version: Some(version) } if id == "same" && version == first.version,
                    "a batch of {count} with an id that is taken, on the condition {condition}"
                );
            }
            let inside = vec![event("new", "x"), Event::builder("Other", "x").id("new").build()?];
            expect_err!(
                store.store_batch(&background(), Batch::new(inside).expected(condition)).await,
                Error::DuplicateEvent { ref id, version: None } if id == "new",
                "a batch with two events of one id, on the condition {condition}"
            );
        }
        expect_eq!(audit(&store).await?.len(), 4, "the number of events after duplicates");
    }

    /// W2: A duplicate reports the version of the stored event with the id, wherever it is in its batch, and no version
    /// if only the batch has it.
    async fn w2_a_duplicate_tells_the_version_that_has_its_id(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("before", "a")).await?;
        let stored = append_one(&store, event("x", "a")).await?;
        let other = |id: &str| Event::builder("Other", "a").id(id).build();
        let there = Some(stored.version);
        for (batch, taken, version) in [
            (vec![other("x")?, other("x")?], "x", there),
            (vec![event("new", "a"), other("x")?], "x", there),
            (vec![event("before", "a"), other("x")?], "x", there),
            (vec![event("y", "a"), event("y", "a"), other("x")?], "x", there),
            (vec![event("y", "a"), other("y")?], "y", None),
            (vec![event("x", "a"), event("y", "a"), other("y")?], "y", None),
            (vec![event("y", "a"), event("x", "a"), other("y")?, event("y", "a")], "y", None),
        ] {
            let listed: Vec<_> = batch.iter().map(|event| format!("{} {}", event.event_type(), event.id())).collect();
            expect_err!(
                store.store_batch(&background(), batch.into()).await,
                Error::DuplicateEvent { ref id, version: found } if id == taken && found == version,
                "the batch {listed:?}, when {version:?} has the id {taken:?} with other content"
            );
        }
        only_has(&store, &["before", "x"]).await?;
    }

    /// W2: The ids of a refused append stay free, also for other content.
    async fn w2_the_ids_of_a_refused_append_are_free(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("taken", "a")).await?;
        let ended = Context::background().with_timeout(Duration::ZERO);
        let new = |id: &str| event(id, "a");
        let refused = [
            (background(), Batch::from(new("conflict")).expected(Expected::NoEvents)),
            (background(), Batch::new(vec![new("duplicate"), event("taken", "b")])),
            (background(), Batch::new(vec![new("invalid"); 2]).recorded_at(vec![])),
            (ended, Batch::from(new("late"))),
        ];
        for (ctx, batch) in refused {
            let id = batch.events[0].id().to_owned();
            let outcome = store.store_batch(&ctx, batch).await;
            ensure!(outcome.is_err(), "an append that has to be refused ({id}) gives {outcome:?}");
            let other = Event::builder("Other", "b").id(&id).data(id.clone()).build()?;
            let stored = append_one(&store, other.clone()).await?;
            expect_eq!(stored.outcome, StoreOutcome::Written, "the outcome of other content with the id {id:?}");
            same_event(&store.get(&background(), &id).await?.event, &other, "get")?;
        }
        only_has(&store, &["taken", "conflict", "duplicate", "invalid", "late"]).await?;
    }

    /// W2: Content is compared up to its last byte.
    async fn w2_content_is_compared_to_its_last_byte(env: &Env) {
        let store = env.open().await?;
        let built = |data: Vec<u8>, metadata: String| {
            Event::builder("Long", "a").id("long").data(data).metadata_json(metadata).build()
        };
        let (data, metadata) = (vec![b'x'; 1 << 20], format!("{{\"long\":\"{}x\"}}", "x".repeat(64 << 10)));
        let first = append_one(&store, built(data.clone(), metadata.clone())?).await?;
        let mut ends_otherwise = data.clone();
        ends_otherwise[(1 << 20) - 1] = b'y';
        for (what, other) in [
            ("data end", built(ends_otherwise, metadata.clone())?),
            ("metadata end", built(data.clone(), metadata.replace("x\"}", "y\"}"))?),
        ] {
            expect_err!(
                store.store_batch(&background(), other.into()).await,
                Error::DuplicateEvent { version: Some(version), .. } if version == first.version,
                "an append of the same id whose {what} with another byte"
            );
        }
        expect_eq!(append_one(&store, built(data, metadata)?).await?, already(first), "the place of the same content");
        only_has(&store, &["long"]).await?;
    }

    /// W2: A batch with `Idempotency::Data` repeats an event with other metadata, and the stored metadata stay.
    async fn w2_metadata_may_differ_if_data_count(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let first = attempt("same", 1)?;
        let place = append_one(&store, first.clone()).await?;
        append(&store, events("later", "a", 2)).await?;
        for number in 2..5 {
            // Even if the condition does not hold: nothing is left to check it for.
            for expected in [Expected::Any, Expected::NoEvents] {
                let batch = by(Idempotency::Data, vec![attempt("same", number)?]).expected(expected);
                let again = append(&store, batch).await?;
                expect_eq!(again, [already(place)], "the place of an event that is repeated with other metadata");
            }
            same_event(&store.get(&background(), "same").await?.event, &first, "`get` after a repetition")?;
        }
        for other in others("same", "a").into_iter().filter(|other| !is_attempt(other)) {
            expect_err!(
                store.store_batch(&background(), by(Idempotency::Data, vec![other.clone()])).await,
                Error::DuplicateEvent { version: Some(version), .. } if version == place.version,
                "an append of {other:?}, of which not only metadata differ, with `Idempotency::Data`"
            );
        }
        let inside = vec![attempt("new", 1)?, attempt("new", 2)?, attempt("same", 5)?, attempt("new", 1)?];
        let stored = append(&store, by(Idempotency::Data, inside)).await?;
        let new = Stored::new(Version::new(7), stored[0].revision, StoreOutcome::Written);
        expect_eq!(stored, [new, already(new), already(place), already(new)], "the places of attempts in one batch");
        same_event(&store.get(&background(), "new").await?.event, &attempt("new", 1)?, "`get` of the first in a batch")?;
        let unlike = vec![attempt("unlike", 1)?, Event::builder("Other", "a").id("unlike").build()?];
        expect_err!(
            store.store_batch(&background(), by(Idempotency::Data, unlike)).await,
            Error::DuplicateEvent { ref id, version: None } if id == "unlike",
            "a batch with two types for one id, with `Idempotency::Data`"
        );
        let all = audit(&store).await?;
        expect_eq!(all.len(), 7, "the number of events after the repetitions");
        same_event(&all[3].event, &first, "a load after the repetitions")?;
    }

    /// W2: A batch with `Idempotency::Id` repeats an event with any other content, and the stored content stays.
    async fn w2_anything_may_differ_if_the_id_alone_counts(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        let first = event("same", "a");
        let place = append_one(&store, first.clone()).await?;
        append(&store, events("later", "a", 2)).await?;
        for other in others("same", "a") {
            for expected in [Expected::Any, Expected::NoEvents] {
                let batch = by(Idempotency::Id, vec![other.clone()]).expected(expected);
                expect_eq!(append(&store, batch).await?, [already(place)], "the place when {other:?} is appended by its id");
            }
            same_event(&store.get(&background(), "same").await?.event, &first, "`get` after a repetition")?;
        }
        for other in others("new", "b") {
            let inside = vec![event("new", "a"), other, event("same", "c")];
            let stored = append(&store, by(Idempotency::Id, inside)).await?;
            let new = Stored::new(Version::new(7), stored[0].revision, stored[0].outcome);
            expect_eq!(stored, [new, already(new), already(place)], "the places of one id's contents in one batch");
        }
        let all = audit(&store).await?;
        expect_eq!(all.len(), 7, "the number of events after the repetitions");
        same_event(&all[3].event, &first, "a load after the repetitions")?;
        same_event(&all[6].event, &event("new", "a"), "a load of what one batch had with several contents")?;
    }

    /// W2: Each batch chooses which content is compared, whatever earlier batches chose, also after reopening.
    #[needs(Persistence)]
    async fn w2_each_batch_chooses_which_content_counts(env: &Env) {
        let mut store = env.open().await?;
        let choices = [Idempotency::Content, Idempotency::Data, Idempotency::Id];
        for (number, choice) in choices.into_iter().enumerate() {
            append(&store, by(choice, vec![attempt(&format!("event-{number}"), 1)?])).await?;
        }
        for round in ["", " after reopening"] {
            for number in 0..choices.len() {
                let id = format!("event-{number}");
                let place = store.get(&background(), &id).await?;
                let place = Stored::new(place.version, place.revision, StoreOutcome::AlreadyStored);
                let (again, other) = (attempt(&id, 2)?, Event::builder("Other", "b").id(&id).build()?);
                for (choice, event, is_same) in [
                    (Idempotency::Id, &other, true),
                    (Idempotency::Data, &other, false),
                    (Idempotency::Content, &other, false),
                    (Idempotency::Data, &again, true),
                    (Idempotency::Content, &again, false),
                    (Idempotency::Content, &attempt(&id, 1)?, true),
                ] {
                    let outcome = store.store_batch(&background(), by(choice, vec![event.clone()])).await;
                    if is_same {
                        expect_eq!(outcome?, [place], "the place of {event:?}, appended with {choice:?}{round}");
                    } else {
                        expect_err!(outcome, Error::DuplicateEvent { .. }, "{event:?}, appended with {choice:?}{round}");
                    }
                }
            }
            store = env.reopen(store).await?;
        }
        only_has(&store, &["event-0", "event-1", "event-2"]).await?;
    }

    /// W2: Of concurrent attempts that differ only in content that is not compared, one is written, and all appends
    /// return its position.
    #[on(Both)]
    async fn w2_attempts_at_once_that_count_as_the_same_are_written_once(env: &Env) {
        let store = env.open().await?;
        for round in 0..20 {
            let (id, choice) = (format!("round-{round}"), [Idempotency::Data, Idempotency::Id][round % 2]);
            let attempts: Vec<_> = (0..8).map(|number| attempt(&id, number)).collect::<Result<_, _>>()?;
            let appends = attempts.iter().map(|attempt| append(&store, by(choice, vec![attempt.clone()])));
            let stored = all_at_once(appends.collect::<Vec<_>>()).await?;
            let there = store.get(&background(), &id).await?;
            let mut writers = attempts.iter().zip(&stored).filter(|(_, stored)| stored[0].outcome == StoreOutcome::Written);
            let Some((writer, _)) = writers.next() else {
                return Err(Failure::new(format!("nobody was told that he wrote {id:?}")));
            };
            ensure!(writers.next().is_none(), "several were told that they wrote {id:?}: {stored:?}");
            same_event(&there.event, writer, "`get`, when the append that wrote it")?;
            for stored in &stored {
                expect_eq!(stored[0].version, there.version, "the version that an attempt was told of {id:?}");
            }
        }
        expect_eq!(audit(&store).await?.len(), 20, "the number of events");
    }

    /// W2: Garbage collection forgets no id: repetitions return their positions, duplicates are refused.
    async fn w2_repetitions_are_known_after_a_collection(env: &Env) {
        let store = env.open().await?;
        let batch = events("batch", "a", 3);
        let first: Vec<_> = append(&store, batch.clone()).await?.into_iter().map(already).collect();
        for gc in [Gc::Quick, Gc::Full] {
            match store.run_gc(&background(), gc).await {
                Err(Error::Unsupported { .. }) if gc == Gc::Full => {}
                outcome => drop(outcome?),
            }
            expect_eq!(append(&store, batch.clone()).await?, first, "the places of a batch repeated after {gc:?}");
            let other = Event::builder("Other", "a").id("batch-2").build()?;
            expect_err!(
                store.store_batch(&background(), other.into()).await,
                Error::DuplicateEvent { version: Some(version), .. } if version == first[1].version,
                "an append of an id that is taken, after {gc:?}"
            );
        }
        only_has(&store, &["batch-1", "batch-2", "batch-3"]).await?;
    }

    /// W2: Of overlapping batches that are appended concurrently, each event is written once, and all return the same
    /// position.
    #[on(Both)]
    async fn w2_batches_that_overlap_at_once_write_each_event_once(env: &Env) {
        let store = env.open().await?;
        for round in 0..10 {
            let all = events(&format!("round-{round}"), "a", 6);
            let appends = (0..6).map(|at| {
                let batch: Vec<_> = (at..at + 3).map(|place| all[place % 6].clone()).collect();
                append(&store, batch)
            });
            let stored = all_at_once(appends.collect::<Vec<_>>()).await?;
            for (place, event) in all.iter().enumerate() {
                // The batches that begin here, one and two positions before.
                let told = [stored[place][0], stored[(place + 5) % 6][1], stored[(place + 4) % 6][2]];
                let there = store.get(&background(), event.id()).await?;
                for told in told {
                    expect_eq!(told.version, there.version, "the version that a batch tells of {:?}", event.id());
                    expect_eq!(told.revision.get(), there.revision.get(), "the revision that a batch tells of {:?}", event.id());
                }
                let written = told.iter().filter(|told| told.outcome == StoreOutcome::Written).count();
                expect_eq!(written, 1, "the number of batches that say that they wrote {:?}", event.id());
            }
        }
        expect_eq!(audit(&store).await?.len(), 60, "the number of events");
    }

    /// W2: For stored events, no condition is checked, so a repetition succeeds even if its condition no longer holds.
    async fn w2_a_repetition_checks_no_condition(env: &Env) {
        let store = env.open().await?;
        let batch = Batch::new(events("first", "a", 2)).expected(Expected::NoEvents);
        let first: Vec<_> = append(&store, batch.clone()).await?.into_iter().map(already).collect();
        expect_eq!(
            append(&store, batch.clone()).await?,
            first,
            "a repeated append whose own events break its condition"
        );
        append(&store, events("later", "a", 2)).await?;
        append(&store, events("elsewhere", "b", 2)).await?;
        for (expected, _) in conditions(4, 6) {
            let again = append(&store, batch.clone().expected(expected)).await?;
            expect_eq!(again, first, "a repeated append with the condition {expected}");
        }
        expect_eq!(audit(&store).await?.len(), 6, "the number of events after the repetitions");
    }

    /// W2: In a batch of stored and new events, the new ones are written, with consecutive versions.
    async fn w2_a_mixed_batch_writes_what_is_new(env: &Env) {
        let store = env.open().await?;
        let old = append(&store, events("old", "a", 3)).await?;
        let batch = vec![
            event("new-1", "b"),
            event("old-2", "a"),
            event("new-2", "a"),
            event("new-1", "b"),
            event("old-1", "a"),
            event("new-3", "b"),
        ];
        let stored = append(&store, batch.clone()).await?;
        let place = |version: u64, revision: u64| Stored::new(version.into(), revision.into(), StoreOutcome::Written);
        let expected = [place(4, 1), already(old[1]), place(5, 4), already(place(4, 1)), already(old[0]), place(6, 2)];
        expect_eq!(stored, expected, "the places of a batch of stored and new events");
        expect_eq!(append(&store, batch).await?, expected.map(already), "the places of the same batch repeated");
        only_has(&store, &["old-1", "old-2", "old-3", "new-1", "new-2", "new-3"]).await?;
    }

    /// W2: A batch with at least one new event is subject to its condition, even if its other events are stored.
    async fn w2_a_mixed_batch_needs_its_condition(env: &Env) {
        let store = env.open().await?;
        append(&store, events("old", "a", 2)).await?;
        let batch = Batch::new(vec![event("old-2", "a"), event("new", "a")]);
        for (expected, _) in conditions(2, 2).into_iter().filter(|(_, holds)| !holds) {
            let refused = store.store_batch(&background(), batch.clone().expected(expected)).await;
            expect_err!(refused, Error::VersionConflict { .. }, "a batch with a new event on the condition {expected}");
            only_has(&store, &["old-1", "old-2"]).await?;
        }
        let stored = append(&store, batch.expected(Expected::Revision(2.into()))).await?;
        expect_eq!(stored[1].revision.get(), 3, "the revision of the new event once the condition holds");
        only_has(&store, &["old-1", "old-2", "new"]).await?;
    }

    /// W2: Stored events are known after reopening: repetitions return them, duplicates are refused.
    #[needs(Persistence)]
    async fn w2_repetitions_are_known_after_reopening(env: &Env) {
        let store = env.open().await?;
        let batch = events("batch", "a", 3);
        let first: Vec<_> = append(&store, batch.clone()).await?.into_iter().map(already).collect();
        let store = env.reopen(store).await?;
        expect_eq!(append(&store, batch).await?, first, "the places of a batch repeated after reopening");
        for other in others("batch-2", "a") {
            expect_err!(
                store.store_batch(&background(), other.clone().into()).await,
                Error::DuplicateEvent { version: Some(version), .. } if version == first[1].version,
                "an append of {other:?} after reopening"
            );
        }
        only_has(&store, &["batch-1", "batch-2", "batch-3"]).await?;
    }

    /// W2: If the same event is appended many times concurrently, one is written, and all appends return its position.
    #[on(Both)]
    async fn w2_the_same_event_appended_at_once_is_written_once(env: &Env) {
        let store = env.open().await?;
        for round in 0..10_u64 {
            let appends = (0..16).map(|_| append(&store, events(&format!("round-{round}"), "a", 2)));
            let stored = all_at_once(appends.collect::<Vec<_>>()).await?;
            for places in &stored {
                expect_eq!(places[0].version.get(), round * 2 + 1, "the version of an event appended 16 times at once");
                expect_eq!(places[1].version.get(), round * 2 + 2, "the version of the second event of that batch");
                expect_eq!(places[0].outcome, places[1].outcome, "the outcomes of the two events of one batch");
            }
            let writers = stored.iter().filter(|places| places[0].outcome == StoreOutcome::Written).count();
            expect_eq!(writers, 1, "the number of appends that say that they wrote the event");
        }
        expect_eq!(audit(&store).await?.len(), 20, "the number of events");
    }

    /// W2: If different events with the same id are appended concurrently, one is written, and the others are
    /// duplicates of it.
    #[on(Both)]
    async fn w2_different_events_with_one_id_appended_at_once_have_one_winner(env: &Env) {
        let store = env.open().await?;
        for round in 0..10_u64 {
            let appends = (0..16).map(|writer| {
                let store = store.clone();
                let event = Event::builder("Raced", "a").id(format!("round-{round}")).json(&writer).build();
                async move { store.store(&background(), event?, Expected::Any).await }
            });
            let outcomes = at_once(appends).await?;
            let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            expect_eq!(won, 1, "the number of winners among 16 events with one id");
            for outcome in outcomes {
                match outcome {
                    Ok(stored) => expect_eq!(stored.version.get(), round + 1, "the version of the winner"),
                    refused => expect_err!(
                        refused,
                        Error::DuplicateEvent { version: Some(version), .. } if version.get() == round + 1,
                        "an event that did not win its id"
                    ),
                }
            }
        }
        expect_eq!(audit(&store).await?.len(), 10, "the number of events");
    }

    /// W3: A condition that does not hold is `VersionConflict` with the state that was found; a condition that holds
    /// has no effect.
    async fn w3_each_condition_accepts_or_refuses_and_tells_what_was_found(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("elsewhere", "elsewhere")).await?;
        for (before, size) in [(0, 1), (0, 3), (1, 1), (2, 3)] {
            for (number, _) in conditions(0, 0).iter().enumerate() {
                let aggregate = format!("after {before}, batch of {size}, condition {number}");
                append(&store, events(&aggregate, &aggregate, before)).await?;
                let (revision, latest) = (before as u64, store.latest_version(&background()).await?.get());
                let (condition, holds) = conditions(revision, latest)[number];
                let batch = Batch::new(events(&format!("{aggregate}, new"), &aggregate, size)).expected(condition);
                let outcome = store.store_batch(&background(), batch).await;
                let what = format!("a batch of {size} on {condition} at revision {revision} and version {latest}");
                if holds {
                    ensure!(outcome.is_ok(), "{what} has to be accepted, but gives {outcome:?}");
                } else {
                    let found = Actual::of(condition, &aggregate, revision.into(), latest.into());
                    expect_err!(
                        outcome,
                        Error::VersionConflict { expected, ref actual } if expected == condition && *actual == found,
                        "{what}"
                    );
                }
                let written = if holds { size } else { 0 };
                let after = store.aggregate_revision(&background(), &aggregate).await?.get();
                expect_eq!(after, (before + written) as u64, "the revision after {what}");
            }
        }
        audit(&store).await?;
    }

    /// W3: Each condition is checked for each kind of batch: new, repeated, mixed, with internal repetitions, of one
    /// aggregate or two.
    async fn w3_each_condition_with_each_kind_of_batch(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("elsewhere", "elsewhere")).await?;
        for kind in 0..8 {
            for number in 0..conditions(0, 0).len() {
                let (a, b) = (format!("a-{kind}-{number}"), format!("b-{kind}-{number}"));
                let old = events(&format!("{a} old"), &a, 2);
                append(&store, old.clone()).await?;
                let (new_a, new_b) = (event(format!("{a} new"), &a), event(format!("{b} new"), &b));
                let (what, revision, new, batch) = match kind {
                    0 => ("a new event", 2, 1, vec![new_a]),
                    1 => ("a stored and a new event", 2, 1, vec![old[1].clone(), new_a]),
                    2 => ("a new event twice", 2, 1, vec![new_a.clone(), new_a]),
                    3 => ("stored events", 2, 0, old),
                    4 => ("the first event of an aggregate, twice", 0, 1, vec![new_b.clone(), new_b]),
                    5 => ("new events of two aggregates", 2, 2, vec![new_a, new_b]),
                    6 => ("stored and new events of two aggregates", 2, 1, vec![old[0].clone(), new_b]),
                    _ => ("no event", 0, 0, vec![]),
                };
                let latest = store.latest_version(&background()).await?.get();
                let (condition, holds) = conditions(revision, latest)[number];
                let about = batch.first().filter(|_| condition.is_about_aggregate()).map(|event| event.aggregate_id().to_owned());
                let outcome = store.store_batch(&background(), Batch::new(batch).expected(condition)).await;
                let what = format!("a batch of {what} on {condition}, at revision {revision} and version {latest}");
                let mut written = 0;
                if about.is_some() && (kind == 5 || kind == 6) {
                    expect_err!(outcome, Error::InvalidEvent { field: "expected", .. }, "{what}");
                } else if holds || new == 0 {
                    ensure!(outcome.is_ok(), "{what} has to be accepted, but gives {outcome:?}");
                    written = new;
                } else {
                    let found = Actual::of(condition, &about.unwrap_or_default(), revision.into(), latest.into());
                    expect_err!(
                        outcome,
                        Error::VersionConflict { expected, ref actual } if expected == condition && *actual == found,
                        "{what}"
                    );
                }
                let after = store.latest_version(&background()).await?.get();
                expect_eq!(after, latest + written, "the latest version after {what}");
            }
        }
        audit(&store).await?;
    }

    /// W3: Conditions include what was stored before the store was opened.
    #[needs(Persistence)]
    async fn w3_conditions_know_what_was_there_before_reopening(env: &Env) {
        let mut store = env.open().await?;
        append(&store, events("first", "a", 3)).await?;
        // Each is the first append after an opening, when nothing is cached yet.
        for (number, _) in conditions(0, 0).iter().enumerate() {
            store = env.reopen(store).await?;
            let latest = store.latest_version(&background()).await?.get();
            let (condition, holds) = conditions(latest, latest)[number];
            let batch = Batch::from(event(format!("after-{number}"), "a")).expected(condition);
            let outcome = store.store_batch(&background(), batch).await;
            if holds {
                ensure!(outcome.is_ok(), "an append on {condition} after reopening at {latest} gives {outcome:?}");
            } else {
                expect_err!(
                    outcome,
                    Error::VersionConflict { ref actual, .. } if found_in(actual) == latest,
                    "an append on {condition} after reopening at revision and version {latest}"
                );
            }
        }
        audit(&store).await?;
    }

    /// W3: Of racing appends with the same condition on a revision, exactly one succeeds.
    #[on(Both)]
    async fn w3_of_racing_appends_on_a_revision_exactly_one_wins(env: &Env) {
        let store = env.open().await?;
        for round in 0..12 {
            let expected = if round == 0 { Expected::NoEvents } else { Expected::Revision((round * 2).into()) };
            race(&store, expected, "a", round * 2).await?;
        }
        expect_eq!(audit(&store).await?.len(), 24, "the number of events");
    }

    /// W3: Of racing appends with the same condition on the latest version, exactly one succeeds.
    #[on(Both)]
    async fn w3_of_racing_appends_on_the_latest_version_exactly_one_wins(env: &Env) {
        let store = env.open().await?;
        for round in 0..12 {
            race(&store, Expected::LatestVersion((round * 2).into()), "a", round * 2).await?;
        }
        expect_eq!(audit(&store).await?.len(), 24, "the number of events");
    }

    /// W3: Concurrent appends are checked in the order in which they are written: the winners form a chain.
    #[on(Both)]
    async fn w3_racing_appends_on_following_revisions_win_as_a_chain(env: &Env) {
        let store = env.open().await?;
        for round in 0..10 {
            let aggregate = format!("aggregate-{round}");
            let appends = (0..12_u64).map(|revision| {
                let (store, aggregate) = (store.clone(), aggregate.clone());
                async move {
                    let event = event(format!("{aggregate}-{revision}"), &aggregate);
                    (revision, store.store(&background(), event, Expected::Revision(revision.into())).await)
                }
            });
            let mut won = 0;
            for (revision, outcome) in at_once(appends).await? {
                match outcome {
                    Ok(stored) => {
                        expect_eq!(stored.revision.get(), revision + 1, "the revision of an append on revision {revision}");
                        expect_eq!(revision, won, "the winner follows the winner before it");
                        won += 1;
                    }
                    refused => expect_err!(
                        refused,
                        Error::VersionConflict { ref actual, .. } if found_in(actual) != revision,
                        "an append on revision {revision} that lost"
                    ),
                }
            }
            let revision = store.aggregate_revision(&background(), &aggregate).await?.get();
            expect_eq!(revision, won, "the revision after {won} winners");
        }
        audit(&store).await?;
    }

    /// W3: Conditions that several appends can meet do not exclude one another.
    #[on(Both)]
    async fn w3_racing_appends_without_a_revision_all_succeed(env: &Env) {
        let store = env.open().await?;
        append_one(&store, event("first", "a")).await?;
        let appends = (0..32).map(|writer| {
            let expected = if writer % 2 == 0 { Expected::Any } else { Expected::Exists };
            append(&store, Batch::from(event(format!("writer-{writer}"), "a")).expected(expected))
        });
        all_at_once(appends.collect::<Vec<_>>()).await?;
        expect_eq!(audit(&store).await?.len(), 33, "the number of events");
    }

    /// W4: An append with `Sync` returns only after the engine's sync, also for events appended with `Buffered` before.
    #[ignore = "needs an engine whose syncs can be observed"]
    async fn w4_sync_returns_after_the_engines_sync(_env: &Env) {}

    /// W4: Events of either durability are visible as soon as the append returns, and are known when repeated with the
    /// other.
    async fn w4_both_durabilities_are_acknowledged_and_readable(env: &Env) {
        let store = env.open().await?;
        append_durably_and_not(&store).await?;
        expect_eq!(audit(&store).await?.len(), 12, "the number of events");
    }

    /// W4: Closing keeps the events of either durability.
    #[needs(Persistence)]
    async fn w4_closing_keeps_the_events_of_both_durabilities(env: &Env) {
        let store = env.open().await?;
        append_durably_and_not(&store).await?;
        let store = env.reopen(store).await?;
        expect_eq!(audit(&store).await?.len(), 12, "the number of events after reopening");
        // The newest events of all, with `Buffered`, and no append after them.
        append(&store, Batch::new(events("last", "a", 3)).durability(Durability::Buffered)).await?;
        let store = env.reopen(store).await?;
        expect_eq!(audit(&store).await?.len(), 15, "the number of events after closing behind a buffered append");
    }

    /// W4: Dropping the last handle keeps the events of either durability, like closing.
    #[needs(Persistence)]
    async fn w4_dropping_the_last_handle_keeps_buffered_events(env: &Env) {
        for round in 1..=4_usize {
            let store = env.open().await?;
            append(&store, Batch::new(events(&format!("sync-{round}"), "a", 1)).durability(Durability::Sync)).await?;
            let last = Batch::new(events(&format!("buffered-{round}"), "a", 2)).durability(Durability::Buffered);
            append(&store, last).await?;
            drop(store);
            let store = env.open().await?;
            expect_eq!(audit(&store).await?.len(), round * 3, "the number of events after dropping the last handle");
        }
    }

    /// W5: A batch of exactly the maximal size is accepted, and with one byte more it is `InvalidEvent`.
    async fn w5_a_batch_of_exactly_the_most_bytes_is_accepted(env: &Env) {
        let store = env.open().await?;
        let filled = |number: usize, bytes: usize| {
            let builder = |data: Vec<u8>| Event::builder("Large", "a").id(format!("large-{number}")).data(data);
            let texts = builder(vec![]).build()?.len_bytes();
            builder(vec![7; bytes - texts]).build()
        };
        let quarter = MAX_BATCH_BYTES / 4;
        let mut batch = (0..4).map(|number| filled(number, quarter)).collect::<Result<Vec<_>, _>>()?;
        expect_eq!(Batch::new(batch.clone()).len_bytes(), MAX_BATCH_BYTES, "the bytes of the suite's own batch");
        let exact = batch.clone();
        batch[3] = filled(3, quarter + 1)?;
        expect_err!(
            store.store_batch(&background(), batch.into()).await,
            Error::InvalidEvent { field: "batch", .. },
            "a batch of one byte more than {MAX_BATCH_BYTES}"
        );
        append(&store, exact.clone()).await?;
        let loaded = load(&store, LoadOptions::all()).await?;
        expect_eq!(loaded.len(), 4, "the number of events after a batch of {MAX_BATCH_BYTES} bytes");
        for (loaded, written) in loaded.iter().zip(&exact) {
            ensure!(loaded.event == *written, "the event {:?} came back with other content", written.id());
        }
    }

    /// W5: The limits of a batch apply even if all of it is already stored.
    async fn w5_the_limits_hold_for_repetitions_too(env: &Env) {
        let store = env.open().await?;
        let first = append_one(&store, event("one", "a")).await?;
        expect_err!(
            store.store_batch(&background(), vec![event("one", "a"); MAX_BATCH_EVENTS + 1].into()).await,
            Error::InvalidEvent { field: "batch", .. },
            "a batch of {} times the same stored event",
            MAX_BATCH_EVENTS + 1
        );
        let at_the_limit = append(&store, vec![event("one", "a"); MAX_BATCH_EVENTS]).await?;
        ensure!(at_the_limit.iter().all(|place| *place == already(first)), "a repeated event has one place");
        only_has(&store, &["one"]).await?;
    }

    /// W5: An empty batch is accepted with any options, and writes nothing.
    async fn w5_an_empty_batch_is_accepted_whatever_it_asks_for(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 3).await?;
        for (condition, _) in conditions(0, 3) {
            for durability in [None, Some(Durability::Sync), Some(Durability::Buffered)] {
                for times in [None, Some(vec![])] {
                    let mut batch = Batch::new(vec![]).expected(condition);
                    (batch.durability, batch.recorded_at) = (durability, times);
                    let outcome = store.store_batch(&background(), batch.clone()).await;
                    let places = outcome.as_ref().map(Vec::len);
                    ensure!(matches!(places, Ok(0)), "{batch:?} has to be accepted, but gives {outcome:?}");
                }
            }
        }
        expect_eq!(audit(&store).await?.len(), 3, "the number of events after empty batches");
    }

    /// W5: A batch over the limits is `InvalidEvent` before anything is queued, and the store stays usable.
    async fn w5_an_over_large_batch_is_refused_and_leaves_no_trace(env: &Env) {
        let store = env.open().await?;
        let too_many = events("many", "a", MAX_BATCH_EVENTS + 1);
        let data = eventstore_api::Bytes::from(vec![7; MAX_DATA_LEN]);
        let large = |number| Event::builder("Large", "a").id(format!("large-{number}")).data(data.clone()).build();
        let too_large = (0..=MAX_BATCH_BYTES / MAX_DATA_LEN).map(large).collect::<Result<Vec<_>, _>>()?;
        for (what, batch) in [("events", too_many), ("bytes", too_large)] {
            let first = batch[0].id().to_owned();
            for expected in [Expected::Any, Expected::NoEvents, Expected::LatestVersion(7.into())] {
                expect_err!(
                    store.store_batch(&background(), Batch::new(batch.clone()).expected(expected)).await,
                    Error::InvalidEvent { field: "batch", .. },
                    "a batch of too many {what} on the condition {expected}"
                );
            }
            let stats = store.stats(&background()).await?;
            expect_eq!((stats.queued_requests, stats.queued_bytes), (0, 0), "what is queued after the refusal");
            let got = store.get(&background(), &first).await;
            expect_err!(got, Error::EventNotFound { .. }, "getting the first event of the refused batch");
            append_one(&store, event(format!("after too many {what}"), "a")).await?;
        }
        only_has(&store, &["after too many events", "after too many bytes"]).await?;
    }

    /// W5: A condition on an aggregate for a batch of two aggregates is `InvalidEvent`.
    async fn w5_a_condition_that_does_not_fit_the_batch_is_refused(env: &Env) {
        let store = env.open().await?;
        append(&store, vec![event("one", "a"), event("two", "b")]).await?;
        let new = vec![event("three", "a"), event("four", "b")];
        let stored = vec![event("one", "a"), event("two", "b")];
        for expected in [Expected::NoEvents, Expected::Exists, Expected::Revision(1.into()), Expected::Revision(0.into())] {
            for batch in [&new, &stored] {
                expect_err!(
                    store.store_batch(&background(), Batch::new(batch.clone()).expected(expected)).await,
                    Error::InvalidEvent { field: "expected", .. },
                    "a batch of two aggregates on the condition {expected}"
                );
            }
        }
        only_has(&store, &["one", "two"]).await?;
        append(&store, Batch::new(new).expected(Expected::LatestVersion(2.into()))).await?;
        only_has(&store, &["one", "two", "three", "four"]).await?;
    }

    /// W5: Events exactly at the limits are accepted and returned.
    async fn w5_what_is_at_the_limits_is_accepted(env: &Env) {
        let store = env.open().await?;
        let (id, aggregate) = ("i".repeat(MAX_ID_LEN), "a".repeat(MAX_AGGREGATE_ID_LEN));
        let metadata = format!("{{\"a\":\"{}\"}}", "m".repeat(MAX_METADATA_LEN - 8));
        let largest = Event::builder("t".repeat(MAX_TYPE_LEN), &aggregate)
            .id(&id)
            .metadata_json(metadata)
            .data(vec![7; MAX_DATA_LEN])
            .build()?;
        // Ids and aggregates that differ from the longest only at the end.
        let near =
            [event(format!("{}j", &id[1..]), &format!("{}b", &aggregate[1..])), event(&id[1..], &aggregate[1..])];
        append_one(&store, largest.clone()).await?;
        append(&store, near.to_vec()).await?;
        come_back(&store, &[largest, near[0].clone(), near[1].clone()]).await?;
        append(&store, events("many", "many", MAX_BATCH_EVENTS)).await?;
        let revision = store.aggregate_revision(&background(), "many").await?.get();
        expect_eq!(revision, MAX_BATCH_EVENTS as u64, "the revision after the largest batch");
        expect_eq!(audit(&store).await?.len(), MAX_BATCH_EVENTS + 3, "the number of events");
    }

    /// W6: Data are returned byte for byte: every byte, no byte, many bytes.
    async fn w6_data_come_back_byte_for_byte(env: &Env) {
        let store = env.open().await?;
        let written = odd_data()?;
        append(&store, written.clone()).await?;
        come_back(&store, &written).await?;
    }

    /// W6: Metadata are returned byte for byte: spacing, order, number precision and escapes are kept.
    async fn w6_metadata_come_back_byte_for_byte(env: &Env) {
        let store = env.open().await?;
        let written = odd_metadata()?;
        append(&store, written.clone()).await?;
        come_back(&store, &written).await?;
    }

    /// W6: Ids, types and aggregates of any characters are returned unchanged, and are distinguished.
    async fn w6_names_of_any_characters_come_back_and_are_kept_apart(env: &Env) {
        let store = env.open().await?;
        let written = odd_names()?;
        for event in &written {
            let stored = append_one(&store, event.clone()).await?;
            expect_eq!(stored.outcome, StoreOutcome::Written, "the outcome of an id of its own: {:?}", event.id());
        }
        come_back(&store, &written).await?;
        for name in awkward_names() {
            let loaded = load(&store, LoadOptions::all().aggregate(name.as_str())).await?;
            expect_eq!(loaded.len(), 1, "the number of events of the aggregate {name:?}");
            expect_eq!(loaded[0].event.aggregate_id(), name, "the aggregate of the only event of it");
        }
    }

    /// W6: Everything is the same after reopening, including the recording time.
    #[needs(Persistence)]
    async fn w6_everything_comes_back_after_reopening(env: &Env) {
        let store = env.open().await?;
        let mut written = odd_data()?;
        written.extend(odd_metadata()?);
        written.extend(odd_names()?);
        append(&store, written.clone()).await?;
        let before = audit(&store).await?;
        let store = env.reopen(store).await?;
        come_back(&store, &written).await?;
        same_events(&audit(&store).await?, &before, "the recorded events after reopening")?;
    }

    /// W7: Explicit recording times are returned, in microseconds, also after reopening.
    async fn w7_times_that_are_named_come_back(env: &Env) {
        let store = env.open().await?;
        let now = SystemTime::now();
        let after = |micros: u64| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        // Unordered, with equal ones, from the first possible time to far in the future.
        let times =
            vec![now, after(1), after(1_000_001), now, after(999_999), after(0), now + Duration::from_secs(1 << 32)];
        let batch = events("event", "a", times.len());
        append(&store, Batch::new(batch.clone()).recorded_at(times.clone())).await?;
        recorded_at(&store, &batch, &times).await?;
        if env.profile.survives_closing() {
            recorded_at(&env.reopen(store).await?, &batch, &times).await?;
        }
    }

    /// W7: The first and the last recordable time are returned, and those at which 32-bit and 64-bit clocks end.
    async fn w7_the_first_and_the_last_time_come_back(env: &Env) {
        let store = env.open().await?;
        let microsecond = Duration::from_micros(1);
        let seconds = [1 << 31, 1 << 32, 9_223_372_036, 9_223_372_037].map(Duration::from_secs);
        let times: Vec<_> = [Duration::ZERO, microsecond, RECORDED_AT_END - microsecond]
            .into_iter()
            .chain(seconds)
            .chain(seconds.map(|time| time - microsecond))
            .map(|since| SystemTime::UNIX_EPOCH + since)
            .collect();
        let batch = events("event", "a", times.len());
        append(&store, Batch::new(batch.clone()).recorded_at(times.clone())).await?;
        recorded_at(&store, &batch, &times).await?;
        if env.profile.survives_closing() {
            recorded_at(&env.reopen(store).await?, &batch, &times).await?;
        }
    }

    /// W7: A time before 1970 or after 9999 is `InvalidEvent`, and nothing is written.
    async fn w7_a_time_that_cannot_be_recorded_is_refused(env: &Env) {
        let store = env.open().await?;
        let (begin, end) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + RECORDED_AT_END);
        let (microsecond, year) = (Duration::from_micros(1), Duration::from_secs(365 * 24 * 60 * 60));
        for time in [begin - microsecond, begin - year, end, end + microsecond, end + year] {
            for place in 0..3 {
                let mut times = vec![SystemTime::now(); 3];
                times[place] = time;
                expect_err!(
                    store.store_batch(&background(), Batch::new(events("new", "a", 3)).recorded_at(times)).await,
                    Error::InvalidEvent { field: "recorded_at", .. },
                    "an append whose event {place} was recorded at {time:?}"
                );
            }
        }
        only_has(&store, &[]).await?;
    }

    /// W7: Each time belongs to the event at its index in the batch, even if others of the batch are already stored.
    async fn w7_times_belong_to_their_events_also_among_repeated_ones(env: &Env) {
        let store = env.open().await?;
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        append(&store, Batch::new(events("old", "a", 2)).recorded_at(vec![time(1), time(2)])).await?;
        let batch = ["old-1", "new-1", "old-2", "new-2", "new-1", "new-3"].map(|id| event(id, "a"));
        append(&store, Batch::new(batch.into()).recorded_at((11..=16).map(time).collect())).await?;
        let all = ["old-1", "old-2", "new-1", "new-2", "new-3"].map(|id| event(id, "a"));
        recorded_at(&store, &all, &[1, 2, 12, 14, 16].map(time)).await?;
    }

    /// W7: Without an explicit time, the recording time is the time of the append.
    async fn w7_the_time_of_an_append_that_names_none_is_its_own(env: &Env) {
        let store = env.open().await?;
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        append(&store, Batch::from(event("past", "a")).recorded_at(vec![past])).await?;
        for round in 0..3 {
            // The store may use another clock, with a lower resolution.
            let tolerance = Duration::from_secs(1);
            let before = SystemTime::now() - tolerance;
            append(&store, events(&format!("round-{round}"), "a", 3)).await?;
            let after = SystemTime::now() + tolerance;
            for recorded in load(&store, LoadOptions::all().backward().limit(3)).await? {
                let time = recorded.recorded_at;
                ensure!((before..=after).contains(&time), "{time:?} is not between {before:?} and {after:?}");
            }
        }
    }

    /// W7: An append with a wrong number of times is `InvalidEvent`, and nothing is written.
    async fn w7_a_wrong_number_of_times_is_refused(env: &Env) {
        let store = env.open().await?;
        for count in [0, 1, 2, 4, 100] {
            let batch = Batch::new(events("new", "a", 3)).recorded_at(vec![SystemTime::now(); count]);
            expect_err!(
                store.store_batch(&background(), batch).await,
                Error::InvalidEvent { field: "recorded_at", .. },
                "an append of three events with {count} times"
            );
        }
        let none = Batch::new(vec![]).recorded_at(vec![SystemTime::now()]);
        expect_err!(
            store.store_batch(&background(), none).await,
            Error::InvalidEvent { field: "recorded_at", .. },
            "an append of no events with one time"
        );
        append(&store, Batch::new(events("new", "a", 3)).recorded_at(vec![SystemTime::now(); 3])).await?;
        only_has(&store, &["new-1", "new-2", "new-3"]).await?;
    }

    /// W7: A repeated append keeps the first time, whatever times the repetition has.
    async fn w7_a_repeated_append_keeps_the_first_time(env: &Env) {
        let store = env.open().await?;
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let batch = events("event", "a", 2);
        append(&store, Batch::new(batch.clone()).recorded_at(vec![time(1), time(2)])).await?;
        append_one(&store, event("unnamed", "a")).await?;
        let first = audit(&store).await?;
        for again in [None, Some(vec![time(7); 3])] {
            let mut batch = Batch::new([batch.as_slice(), &[event("unnamed", "a")]].concat());
            batch.recorded_at = again;
            for stored in append(&store, batch).await? {
                expect_eq!(stored.outcome, StoreOutcome::AlreadyStored, "the outcome of a repetition");
            }
            same_events(&audit(&store).await?, &first, "the events after a repetition with other times")?;
        }
    }

    /// W7: A copy of events with times that cannot be recorded has the nearest allowed ones.
    async fn w7_a_copy_of_events_with_impossible_times_has_the_nearest(env: &Env) {
        let store = env.open().await?;
        let (begin, end) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + RECORDED_AT_END);
        let (microsecond, year) = (Duration::from_micros(1), Duration::from_secs(365 * 24 * 60 * 60));
        let (now, last) = (SystemTime::now(), end - microsecond);
        let times = [
            (begin - 50 * year, begin),
            (end + 2000 * year, last),
            (now, now),
            (begin - microsecond, begin),
            (end, last),
            (now - year, now - year),
        ];
        let copied = events("copied", "a", times.len());
        let recorded: Vec<_> = (1..)
            .zip(copied.iter().zip(times))
            .map(|(place, (event, (time, _)))| RecordedEvent::new(Version::new(place), place.into(), time, event.clone()))
            .collect();
        for part in recorded.chunks(4) {
            append(&store, Batch::copy_of(part)).await?;
        }
        let nearest = times.map(|(_, nearest)| nearest);
        recorded_at(&store, &copied, &nearest).await?;
        if env.profile.survives_closing() {
            recorded_at(&env.reopen(store).await?, &copied, &nearest).await?;
        }
    }

    /// W7: A copy of another store has the same positions and times, and is refused where it does not follow.
    async fn w7_a_copy_has_the_places_and_times_of_the_first(env: &Env) {
        let from = env.open().await?;
        append_history(&from, 20).await?;
        let odd = SystemTime::UNIX_EPOCH + Duration::from_micros(1_234_567);
        append(&from, Batch::from(event("odd", "a")).recorded_at(vec![odd])).await?;
        let all = audit(&from).await?;
        let into_env = env.fresh()?;
        let into = into_env.open().await?;
        for part in all.chunks(8) {
            let too_soon = into.store_batch(&background(), Batch::copy_of(behind(&all, 20))).await;
            expect_err!(too_soon, Error::VersionConflict { .. }, "a copy of the last event before those in front of it");
            let stored = append(&into, Batch::copy_of(part)).await?;
            for (stored, first) in stored.iter().zip(part) {
                let place = (stored.version, stored.revision.get(), stored.outcome);
                expect_eq!(place, (first.version, first.revision.get(), StoreOutcome::Written), "the place of a copy");
            }
            // A copy that is repeated after it was interrupted.
            append(&into, Batch::copy_of(part)).await?;
        }
        same_events(&audit(&into).await?, &all, "the events of the copy")?;
        let elsewhere_env = env.fresh()?;
        let elsewhere = elsewhere_env.open().await?;
        append_one(&elsewhere, event("of its own", "a")).await?;
        let refused = elsewhere.store_batch(&background(), Batch::copy_of(first_of(&all, 8))).await;
        expect_err!(refused, Error::VersionConflict { .. }, "a copy in a store that went elsewhere");
        only_has(&elsewhere, &["of its own"]).await?;
    }
}

/// Fails unless these events were recorded at these times, in microseconds.
async fn recorded_at(store: &Store, events: &[Event], times: &[SystemTime]) -> Checked {
    let micros = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let loaded = load(store, LoadOptions::all()).await?;
    expect_eq!(loaded.len(), events.len(), "the number of events");
    for ((event, &time), loaded) in events.iter().zip(times).zip(&loaded) {
        let id = event.id();
        let got = store.get(&background(), id).await?;
        expect_eq!(micros(got.recorded_at), micros(time), "the microseconds since 1970 that `get` gives for {id:?}");
        expect_eq!(
            micros(loaded.recorded_at),
            micros(time),
            "the microseconds since 1970 that `load` gives for {id:?}"
        );
    }
    Ok(())
}

/// Names that stores may handle wrongly: adjacent ones, prefixes of each other, similar to ids with a compact form, and
/// with all kinds of characters.
pub(super) fn awkward_names() -> Vec<String> {
    let mut names: Vec<String> = [
        // Each is a prefix of the next, followed by the smallest and the largest characters.
        "a",
        "ab",
        "a\0",
        "a\0\0",
        "a\0b",
        "a\u{1}",
        "a\u{10ffff}",
        "a\u{7f}",
        "a\u{ff}",
        "aa",
        "A",
        "b",
        "\0",
        "\u{10ffff}",
        // Characters with a meaning in paths, queries and keys.
        " ",
        "  ",
        "a b",
        " a",
        "a ",
        "a/b",
        "/",
        "..",
        "a:b",
        "a|b",
        "a\\b",
        "a\"b",
        "a'b",
        "a%00b",
        "%",
        "*",
        "a\nb",
        "\t",
        "größe",
        "gro\u{0308}ße",
        "日本",
        "🦀",
        "👩‍👩‍👧",
        "null",
        "0",
        "1",
        "-1",
        // One UUID in forms that are different ids, and its sixteen bytes as text.
        "30313233-3435-3637-3839-616263646566",
        "30313233-3435-3637-3839-61626364656A",
        "30313233-3435-3637-3839-61626364656a",
        "3031323334353637383961626364656a",
        "{30313233-3435-3637-3839-61626364656a}",
        "urn:uuid:30313233-3435-3637-3839-61626364656a",
        "30313233-3435-3637-3839-61626364656a ",
        "30313233-3435-3637-3839-61626364656",
        "0123456789abcdef",
        "0123456789abcdej",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    ]
    .map(str::to_owned)
    .into();
    // Sixteen characters that could be the bytes of a compact UUID, and texts of similar lengths.
    names.push("\0".repeat(16));
    names.extend([15, 16, 17, 35, 36, 37, 254, 255].map(|length| "x".repeat(length)));
    names.extend([8, 16].map(|length| "\u{1}".repeat(length)));
    names
}

fn odd_names() -> Checked<Vec<Event>> {
    let names = awkward_names();
    let named = |name: &String| Event::builder(name, name).id(name).data(name.clone()).build();
    Ok(names.iter().map(named).collect::<Result<_, _>>()?)
}

fn odd_data() -> Checked<Vec<Event>> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut data = vec![vec![], every_byte.clone(), every_byte.repeat(4096), vec![0; 4096], vec![255; 65_537]];
    data.extend([1, 2, 7, 15, 16, 17, 255, 256, 4095, 4097].map(|length| vec![b'x'; length]));
    data.extend([b"{ \"a\" : 1.50 }\n".to_vec(), b"\xef\xbb\xbf{}".to_vec(), b"\xff\xfe\0".to_vec(), b"\0".to_vec()]);
    let with_data = |(number, data): (usize, Vec<u8>)| {
        Event::builder("Data", "data").id(format!("data-{number}")).data(data).build()
    };
    Ok(data.into_iter().enumerate().map(with_data).collect::<Result<_, _>>()?)
}

fn odd_metadata() -> Checked<Vec<Event>> {
    let texts = [
        "{}",
        "{ }",
        " {\n}\t",
        "{ \"b\" : 1.50,\r\n\t\"a\":2 }",
        r#"{"n":1e400,"m":0.1000000000000000055511151231257827,"k":12345678901234567890123456789,"z":-0.0,"y":1E+2}"#,
        r#"{"twice":1,"twice":2}"#,
        r#"{"escaped":"\u00e9\/\ud83e\udd80\u0000","plain":"é/🦀"}"#,
        r#"{"":{"deep":[[[[[[{}]]]]]]}}"#,
    ];
    let with_metadata = |(number, text): (usize, &str)| {
        Event::builder("Metadata", "metadata").id(format!("metadata-{number}")).metadata_json(text).build()
    };
    let mut events = texts.into_iter().enumerate().map(with_metadata).collect::<Result<Vec<_>, _>>()?;
    let long = format!("{{\"long\":\"{}\"}}", "é".repeat(40_000));
    events.push(Event::builder("Metadata", "metadata").id("metadata-long").metadata_json(long).build()?);
    Ok(events)
}

/// A batch of these events with this idempotency.
fn by(idempotency: Idempotency, events: Vec<Event>) -> Batch {
    Batch::new(events).idempotency(idempotency)
}

/// The event with this id as built by one attempt: with its own metadata.
fn attempt(id: &str, number: u64) -> Result<Event, Error> {
    let same = event(id, "a");
    let metadata = format!("{{\"attempt\":{number}}}");
    Event::builder(same.event_type(), "a").id(id).data(same.data_bytes()).metadata_json(metadata).build()
}

/// Whether it differs from another attempt only in its metadata.
fn is_attempt(other: &Event) -> bool {
    let same = event(other.id(), "a");
    Idempotency::Data.is_same(&same, other)
}

/// Events with the id of `event(id, aggregate_id)`, each with one part changed.
fn others(id: &str, aggregate_id: &str) -> Vec<Event> {
    let same = event(id, aggregate_id);
    let builder = |event_type: &str, aggregate_id: &str| Event::builder(event_type, aggregate_id).id(id);
    let data = eventstore_api::Bytes::from(same.data().to_vec());
    let mut longer = data.to_vec();
    longer.push(b' ');
    let all = [
        builder("Other", aggregate_id).data(data.clone()),
        builder(same.event_type(), "other").data(data.clone()),
        builder(same.event_type(), aggregate_id).data(data.clone()).metadata_json("{\"a\":1}"),
        // The same JSON in other bytes is other content.
        builder(same.event_type(), aggregate_id).data(data.clone()).metadata_json("{ }"),
        builder(same.event_type(), aggregate_id).data("other"),
        builder(same.event_type(), aggregate_id).data(longer),
        builder(same.event_type(), aggregate_id),
        // The same characters in total, but with another border between type and aggregate.
        builder(&format!("{}{aggregate_id}", same.event_type()), aggregate_id).data(data.clone()),
        builder(&same.event_type()[..7], &format!("{}{aggregate_id}", &same.event_type()[7..])).data(data),
    ];
    all.into_iter().map(|builder| builder.build().expect("the suite's own events are valid")).collect()
}

fn already(stored: Stored) -> Stored {
    Stored::new(stored.version, stored.revision, StoreOutcome::AlreadyStored)
}

/// Fails unless the store has exactly the events with these ids, in this order, and is otherwise intact.
async fn only_has(store: &Store, expected: &[&str]) -> Checked {
    let all = audit(store).await?;
    expect_eq!(ids(&all), expected, "the events in the store");
    Ok(())
}

/// Fails unless `load` and `get` return these events, and the store has nothing else.
async fn come_back(store: &Store, written: &[Event]) -> Checked {
    let loaded = load(store, LoadOptions::all()).await?;
    expect_eq!(loaded.len(), written.len(), "the number of events");
    for (RecordedEvent { event: loaded, .. }, written) in loaded.iter().zip(written) {
        same_event(loaded, written, "load")?;
        same_event(&store.get(&background(), written.id()).await?.event, written, "get")?;
        // Comparisons for repetitions use what was stored.
        let again = append_one(store, written.clone()).await?;
        expect_eq!(again.outcome, StoreOutcome::AlreadyStored, "the outcome of appending {:?} again", written.id());
    }
    Ok(())
}

#[track_caller]
fn same_event(got: &Event, written: &Event, by: &str) -> Checked {
    let id = written.id();
    expect_eq!(got.id(), id, "the id that `{by}` gives");
    expect_eq!(got.event_type(), written.event_type(), "the type that `{by}` gives for {id:?}");
    expect_eq!(got.aggregate_id(), written.aggregate_id(), "the aggregate that `{by}` gives for {id:?}");
    expect_eq!(got.metadata(), written.metadata(), "the metadata that `{by}` gives for {id:?}");
    expect_eq!(got.data(), written.data(), "the data that `{by}` gives for {id:?}");
    Ok(())
}

async fn append_durably_and_not(store: &Store) -> Checked {
    for (number, durability) in [Durability::Sync, Durability::Buffered].into_iter().cycle().take(6).enumerate() {
        let batch = Batch::new(events(&format!("batch-{number}"), "a", 2)).durability(durability);
        let stored = append(store, batch.clone()).await?;
        let last = load(store, LoadOptions::all().backward().limit(1)).await?;
        expect_eq!(
            last.first().map(|last| last.version),
            Some(stored[1].version),
            "the newest version after an append with {durability:?}"
        );
        for other in [Durability::Buffered, Durability::Sync] {
            let again = append(store, batch.clone().durability(other)).await?;
            let first: Vec<_> = stored.iter().copied().map(already).collect();
            expect_eq!(again, first, "an append with {durability:?} repeated with {other:?}");
        }
    }
    Ok(())
}

/// Sixteen appends of two events each with one condition: fails unless one wins and the others get its result in the
/// conflict.
async fn race(store: &Store, condition: Expected, aggregate: &str, before: u64) -> Checked {
    let appends = (0..16).map(|writer| {
        let store = store.clone();
        let batch = Batch::new(events(&format!("{condition}-{writer}"), aggregate, 2)).expected(condition);
        async move { store.store_batch(&background(), batch).await }
    });
    let mut winners = 0;
    for outcome in at_once(appends).await? {
        match outcome {
            Ok(stored) => {
                winners += 1;
                let version = stored.first().map(|first| first.version.get());
                expect_eq!(version, Some(before + 1), "the version of the winner on {condition}");
            }
            lost => expect_err!(
                lost,
                Error::VersionConflict { expected, ref actual } if expected == condition && found_in(actual) == before + 2,
                "an append on {condition} that lost against one of two events"
            ),
        }
    }
    expect_eq!(winners, 1, "the number of winners among 16 appends on the condition {condition}");
    Ok(())
}
