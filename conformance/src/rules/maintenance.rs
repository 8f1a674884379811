//! M: backups, verification, garbage collection, statistics and digests, concurrently with other calls.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use eventstore_api::{
    Batch, CancellationToken, Context, Digest, Durability, Error, Event, EventStore, Expected, Gc, LoadOptions,
    Progress, StoreOutcome, Stored, Version,
};

use crate::calls::collect;
use crate::check::checks;
use crate::env::Store;
use crate::events::{append, append_history, append_large, append_one, background, event, events, found_in};
use crate::failure::{Checked, Failure};
use crate::files::Content;
use crate::reading::{NEWEST, audit, digests_of, first_of, is_sound, load, same_events};
use crate::tasks::{Background, all_at_once, at_once, interrupted, polled};

checks! {
    /// M1: A backup that was taken while events are appended is a complete store with the first events of this one, and
    /// no batch in part.
    #[needs(Backup)]
    async fn m1_a_backup_while_writers_write_has_the_first_events_and_no_batch_in_part(env: &Env) {
        let store = env.open().await?;
        let writers = write_triples(&store);
        let mut backups = Vec::new();
        for written in [0, 30, 90, 150, 210, 270, 330] {
            store.wait_for_events(&background(), written.into()).await?;
            let (target, before) = (env.unused_path(), store.latest_version(&background()).await?);
            let report = store.backup(&background(), &target).await?;
            let latest = report.latest_version;
            ensure!(latest >= before, "a backup that began at version {before} ends at version {latest}");
            backups.push((target, latest));
        }
        writers.finish().await?;
        let all = audit(&store).await?;
        for (target, latest) in backups {
            let backup = env.open_at(&target).await?;
            let kept = audit(&backup).await?;
            expect_eq!(kept.len() as u64, latest.get(), "the number of events of a backup up to version {latest}");
            expect_eq!(kept.len() % 3, 0, "the number of events of a backup, when all batches have three, modulo three");
            same_events(&kept, first_of(&all, kept.len()), "the events of a backup")?;
            if env.profile.verifies() {
                is_sound(&backup.verify(&background()).await?, &kept)?;
            }
            backup.close().await?;
        }
    }

    /// M1: A backup has all events that were acknowledged before it began, of either durability.
    #[needs(Backup)]
    #[on(Both)]
    async fn m1_a_backup_has_all_that_was_acknowledged_before_it(env: &Env) {
        let store = env.open().await?;
        for round in 0..6 {
            let durability = if round % 2 == 0 { Durability::Sync } else { Durability::Buffered };
            append(&store, Batch::new(events(&format!("round-{round}"), "a", 2)).durability(durability)).await?;
            let target = env.unused_path();
            store.backup(&background(), &target).await?;
            let backup = env.open_at(&target).await?;
            same_events(&audit(&backup).await?, &audit(&store).await?, "the events of a backup of a store at rest")?;
            backup.close().await?;
        }
    }

    /// M1: A backup and its store are independent, and each can be backed up again.
    #[needs(Backup)]
    async fn m1_a_backup_is_a_store_of_its_own(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 20).await?;
        let (first, second) = (env.unused_path(), env.unused_path());
        store.backup(&background(), &first).await?;
        let before = audit(&store).await?;
        expect_eq!(before.len(), 20, "the number of events after a backup");
        let backup = env.open_at(&first).await?;
        let stored = append_one(&backup, event("of the backup", "a")).await?;
        expect_eq!(stored.version.get(), 21, "the version of what is appended to a backup");
        append(&store, events("of the store", "b", 2)).await?;
        backup.backup(&background(), &second).await?;
        let (of_store, of_backup) = (audit(&store).await?, audit(&backup).await?);
        for (all, count, what) in [(&of_store, 22, "store"), (&of_backup, 21, "backup")] {
            expect_eq!(all.len(), count, "the number of events of the {what} when both went on");
            same_events(first_of(all, 20), &before, &format!("the events of the {what} that both have"))?;
        }
        backup.close().await?;
        same_events(&audit(&env.reopen(store).await?).await?, &of_store, "the events of the store when opened again")?;
        for path in [first, second] {
            same_events(&audit(&env.open_at(&path).await?).await?, &of_backup, "the events of the backup, and its backup")?;
        }
    }

    /// M1: A backup knows the ids and revisions of its events: repetitions, duplicates and conditions are handled as in
    /// the store.
    #[needs(Backup)]
    async fn m1_a_backup_knows_the_ids_and_revisions_of_its_events(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 6).await?;
        let first = append_one(&store, event("one", "x")).await?;
        let target = env.unused_path();
        store.backup(&background(), &target).await?;
        let backup = env.open_at(&target).await?;
        let again = append_one(&backup, event("one", "x")).await?;
        let place = Stored::new(first.version, first.revision, StoreOutcome::AlreadyStored);
        expect_eq!(again, place, "the place of an event that is repeated in a backup");
        let other = Event::builder("Other", "x").id("one").build()?;
        expect_err!(
            backup.store_batch(&background(), other.into()).await,
            Error::DuplicateEvent { version: Some(version), .. } if version == first.version,
            "an append of an id that is taken in a backup"
        );
        let refused = Batch::from(event("two", "x")).expected(Expected::NoEvents);
        expect_err!(
            backup.store_batch(&background(), refused).await,
            Error::VersionConflict { ref actual, .. } if found_in(actual) == 1,
            "an append on a condition that does not hold in a backup"
        );
        append(&backup, Batch::from(event("two", "x")).expected(Expected::Revision(1.into()))).await?;
        audit(&backup).await?;
    }

    /// M1: Concurrent backups are each complete.
    #[needs(Backup)]
    #[on(Both)]
    async fn m1_backups_at_the_same_time_are_each_complete(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let all = audit(&store).await?;
        let targets: Vec<_> = (0..3).map(|_| env.unused_path()).collect();
        let backups = targets.iter().cloned().map(|target| {
            let store = store.clone();
            async move { Ok(store.backup(&background(), &target).await?) }
        });
        all_at_once(backups.collect::<Vec<_>>()).await?;
        for target in targets {
            let backup = env.open_at(&target).await?;
            same_events(&audit(&backup).await?, &all, "the events of one of three backups at the same time")?;
            backup.close().await?;
        }
    }

    /// M1: A backup reports progress, never beyond the total and never going back.
    #[needs(Backup)]
    async fn m1_a_backup_tells_how_far_it_has_come(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let (ctx, told) = listening();
        store.backup(&ctx, &env.unused_path()).await?;
        only_goes_on(&told, "a backup")?;
    }

    /// M1: A backup of an empty store is an empty store.
    #[needs(Backup)]
    async fn m1_a_backup_of_an_empty_store_is_empty(env: &Env) {
        let store = env.open().await?;
        let target = env.unused_path();
        let report = store.backup(&background(), &target).await?;
        expect_eq!(report.latest_version, Version::ZERO, "the latest version of a backup of an empty store");
        let backup = env.open_at(&target).await?;
        expect_eq!(audit(&backup).await?, [], "the events of a backup of an empty store");
        let stored = append_one(&backup, event("first", "a")).await?;
        expect_eq!(stored.version.get(), 1, "the first version of a backup of an empty store");
    }

    /// M1: A backup is synced when the call returns.
    #[ignore = "needs a system whose syncs can be observed"]
    async fn m1_a_backup_is_synced_when_the_call_returns(_env: &Env) {}

    /// M1, declared absent: a store without backups returns an error and writes nothing.
    #[needs(NoBackup)]
    async fn m1_without_backups_the_call_is_unsupported(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let before = audit(&store).await?;
        let target = env.unused_path();
        let backup = store.backup(&background(), &target).await;
        expect_err!(backup, Error::Unsupported { .. }, "a backup of a store that takes none");
        ensure!(!target.exists(), "a store that takes no backups made {}", target.display());
        same_events(&audit(&store).await?, &before, "the events after a backup that is not supported")?;
    }

    /// M2: A backup into a nonempty directory is refused, and nothing in it is changed.
    #[needs(Backup)]
    async fn m2_a_target_that_is_not_empty_is_refused_and_not_touched(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let (file, strange, other) = (env.unused_path(), env.unused_path(), env.unused_path());
        fs::write(&file, "a file")?;
        let others = env.open_at(&other).await?;
        append_one(&others, event("another", "b")).await?;
        others.close().await?;
        drop(others);
        fs::create_dir(&strange)?;
        fs::write(strange.join("mine"), "somebody's")?;
        fs::create_dir(strange.join("deep"))?;
        append_one(&store, event("later", "a")).await?;
        for target in [file.as_path(), &strange, &other, env.directory()] {
            // A store's directory has a lock file and the like, whose content cannot be read.
            let is_a_store = target == env.directory() || target == other;
            let before = if is_a_store { Content::default() } else { Content::of(target)? };
            let refused = store.backup(&background(), target).await;
            expect_err!(refused, Error::Open { .. }, "a backup to {}, where something is", target.display());
            if !is_a_store {
                before.is_still(target, "a target that was refused")?;
            }
        }
        expect_eq!(audit(&env.open_at(&other).await?).await?.len(), 1, "the events of a store to which a backup was refused");
        expect_eq!(audit(&store).await?.len(), 11, "the number of events after backups that were refused");
        // An empty directory is accepted.
        let empty = env.unused_path();
        fs::create_dir(&empty)?;
        store.backup(&background(), &empty).await?;
        expect_eq!(audit(&env.open_at(&empty).await?).await?.len(), 11, "the events of a backup to an empty directory");
    }

    /// M2: A backup into an earlier backup of the same store is refused, or updates it: never anything in between.
    #[needs(Backup)]
    async fn m2_an_earlier_backup_stays_or_becomes_the_newer_one(env: &Env) {
        let store = env.open().await?;
        let target = env.unused_path();
        append_history(&store, 10).await?;
        store.backup(&background(), &target).await?;
        let (mut kept, mut later) = (audit(&store).await?, 0);
        for number in 0..8 {
            for _ in 0..=number {
                later += 1;
                append_one(&store, event(format!("later-{later}"), "a")).await?;
            }
            let all = audit(&store).await?;
            let ended = end_some_way(number, |ctx| {
                let (store, target) = (store.clone(), target.clone());
                async move {
                    match store.backup(&ctx, &target).await {
                        Err(Error::Open { .. }) => Err(Error::Cancelled), // a store may refuse it
                        outcome => outcome.map(drop),
                    }
                }
            })
            .await?;
            let backup = loop {
                match env.opening_at(&target).await {
                    // A backup whose future was dropped may take a moment to end.
                    Err(Error::Locked { .. }) if ended == Ended::Dropped => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    outcome => break outcome?,
                }
            };
            let found = audit(&backup).await?;
            backup.close().await?;
            ensure!(found == kept || found == all, "a backup is neither the earlier one nor the newer one: {ended:?}");
            ensure!(ended != Ended::Done || found == all, "a backup that succeeded is the earlier one");
            kept = found;
        }
    }

    /// M2: Of concurrent backups into one directory, at least one succeeds, and it is complete.
    #[needs(Backup)]
    #[on(Both)]
    async fn m2_of_backups_into_one_directory_at_once_one_is_complete(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let all = audit(&store).await?;
        for _ in 0..2 {
            let target = env.unused_path();
            let backups = (0..4).map(|_| {
                let (store, target) = (store.clone(), target.clone());
                async move { store.backup(&background(), &target).await }
            });
            let mut succeeded = 0;
            for outcome in at_once(backups.collect::<Vec<_>>()).await? {
                match outcome {
                    Ok(_) => succeeded += 1,
                    refused => expect_err!(
                        refused,
                        Error::Open { .. } | Error::Locked { .. },
                        "a backup into a directory to which another is written"
                    ),
                }
            }
            ensure!(succeeded > 0, "none of four backups into one directory succeeded");
            let backup = env.open_at(&target).await?;
            same_events(&audit(&backup).await?, &all, "the events of the one backup that succeeded")?;
            backup.close().await?;
        }
    }

    /// M2: A backup whose context ends leaves nothing that opens, and can be repeated. One whose future is dropped does so
    /// as well, unless it was complete.
    #[needs(Backup)]
    #[on(Both)]
    async fn m2_a_backup_that_is_ended_leaves_nothing_that_opens(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let all = audit(&store).await?;
        for number in 0..14 {
            let target = env.unused_path();
            let ended = end_some_way(number, |ctx| {
                let (store, target) = (store.clone(), target.clone());
                async move { store.backup(&ctx, &target).await.map(drop) }
            })
            .await?;
            if ended == Ended::Done {
                same_events(&audit(&env.open_at(&target).await?).await?, &all, "the events of a backup that was faster")?;
                continue;
            }
            if number % 2 == 0 {
                // What is there is not a store: opening it fails or creates one.
                if let Ok(opened) = env.opening_at(&target).await {
                    let there = audit(&opened).await?;
                    let is_complete = ended == Ended::Dropped && !there.is_empty();
                    let expected = if is_complete { &all[..] } else { &[] };
                    same_events(&there, expected, &format!("what a backup left that was {ended:?}"))?;
                    opened.close().await?;
                }
                continue;
            }
            // A backup whose future was dropped may take a moment to end. If it was complete, another may be refused for ever.
            let patience = Instant::now() + env.profile.limit() / 3;
            loop {
                match store.backup(&background(), &target).await {
                    Err(Error::Open { .. } | Error::Locked { .. }) if ended == Ended::Dropped => {
                        if Instant::now() > patience {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    outcome => {
                        outcome?;
                        break;
                    }
                }
            }
            let backup = env.open_at(&target).await?;
            same_events(&audit(&backup).await?, &all, &format!("the events of a backup after one that was {ended:?}"))?;
        }
        append_one(&store, event("after", "a")).await?;
        expect_eq!(audit(&store).await?.len(), all.len() + 1, "the number of events after backups that were ended");
    }

    /// M3: A verification of an intact store finds nothing, and reports how much it read.
    #[needs(Verification)]
    #[on(Both)]
    async fn m3_a_sound_store_has_no_findings(env: &Env) {
        let store = env.open().await?;
        is_sound(&store.verify(&background()).await?, &[])?;
        append_history(&store, 60).await?;
        let refused = store.store_batch(&background(), vec![event("new", "a"), event("history-1", "b")].into()).await;
        expect_err!(refused, Error::DuplicateEvent { .. }, "an append of an id that is taken");
        append(&store, events("many", "many", 3000)).await?;
        is_sound(&store.verify(&background()).await?, &audit(&store).await?)?;
        if env.profile.survives_closing() {
            let store = env.reopen(store).await?;
            is_sound(&store.verify(&background()).await?, &audit(&store).await?)?;
        }
    }

    /// M3: A verification of an intact store finds nothing while events are appended.
    #[needs(Verification)]
    #[on(Both)]
    async fn m3_a_store_that_is_written_to_has_no_findings(env: &Env) {
        let store = env.open().await?;
        let writers = write_triples(&store);
        let mut rounds = 0;
        while writers.is_running() || rounds < 3 {
            let before = store.latest_version(&background()).await?.get();
            let report = store.verify(&background()).await?;
            let after = store.latest_version(&background()).await?.get();
            expect_eq!(report.findings, [], "what was found in a store that is written to");
            ensure!(!report.is_cut_short, "a verification without findings was cut short");
            let events = report.events;
            ensure!((before..=after).contains(&events), "{events} events were verified of {before} to {after}");
            let aggregates = report.aggregates;
            ensure!(aggregates <= 3 && (aggregates > 0 || events == 0), "{aggregates} aggregates of three writers");
            rounds += 1;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        is_sound(&store.verify(&background()).await?, &audit(&store).await?)?;
    }

    /// M3: A verification whose context ends returns the reason, and changes nothing.
    #[needs(Verification)]
    #[on(Both)]
    async fn m3_a_verification_that_is_ended_says_so(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let all = audit(&store).await?;
        for number in 0..14 {
            end_some_way(number, |ctx| {
                let store = store.clone();
                async move { store.verify(&ctx).await.map(drop) }
            })
            .await?;
        }
        is_sound(&store.verify(&background()).await?, &all)?;
        append_one(&store, event("after", "a")).await?;
    }

    /// M3: A verification reports progress, never beyond the total and never going back.
    #[needs(Verification)]
    async fn m3_a_verification_tells_how_far_it_has_come(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let (ctx, told) = listening();
        store.verify(&ctx).await?;
        only_goes_on(&told, "a verification")?;
    }

    /// M3: A verification reports damage.
    #[ignore = "needs access to the files of the store"]
    async fn m3_damage_is_named(_env: &Env) {}

    /// M3, declared absent: a store without verification returns an error.
    #[needs(NoVerification)]
    async fn m3_without_verification_the_call_is_unsupported(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let verified = store.verify(&background()).await;
        expect_err!(verified, Error::Unsupported { .. }, "a verification by a store that does not verify");
        expect_eq!(audit(&store).await?.len(), 10, "the number of events after a verification that is not supported");
    }

    /// M4: Garbage collections of either kind change no event, with concurrent reads and appends.
    async fn m4_collections_beside_readers_and_writers_change_no_event(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 60).await?;
        let before = audit(&store).await?;
        let writers = write_triples(&store);
        let mut rounds = 0;
        while writers.is_running() || rounds < 3 {
            for gc in [Gc::Quick, Gc::Full] {
                collect(&store, &background(), gc).await?;
                let events = load(&store, LoadOptions::all()).await?;
                same_events(first_of(&events, before.len()), &before, &format!("the events after {gc:?}"))?;
            }
            rounds += 1;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        let all = audit(&store).await?;
        expect_eq!(all.len(), 60 + 3 * 40 * 3, "the number of events that were acknowledged beside collections");
        collect(&store, &background(), Gc::Full).await?;
        same_events(&audit(&store).await?, &all, "the events after a collection of a store at rest")?;
        if env.profile.survives_closing() {
            same_events(&audit(&env.reopen(store).await?).await?, &all, "the events after collections and reopening")?;
        }
    }

    /// M4: A garbage collection stops when its context ends, and changes no event.
    #[on(Both)]
    async fn m4_a_collection_that_is_ended_changes_no_event(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let all = audit(&store).await?;
        for gc in [Gc::Quick, Gc::Full] {
            let token = CancellationToken::new();
            token.cancel();
            match store.run_gc(&Context::background().with_cancellation(token), gc).await {
                Err(Error::Unsupported { .. }) if gc == Gc::Full => {}
                outcome => expect_err!(outcome, Error::Cancelled, "a collection ({gc:?}) that was cancelled before"),
            }
            for number in 0..14 {
                end_some_way(number, |ctx| {
                    let store = store.clone();
                    async move { collect(&store, &ctx, gc).await }
                })
                .await?;
            }
            same_events(&audit(&store).await?, &all, &format!("the events after collections ({gc:?}) that were ended"))?;
        }
        append_one(&store, event("after", "a")).await?;
    }

    /// M4: A garbage collection of an empty store does nothing, and the store remains usable.
    async fn m4_a_collection_of_an_empty_store_does_nothing(env: &Env) {
        let store = env.open().await?;
        for gc in [Gc::Quick, Gc::Full] {
            collect(&store, &background(), gc).await?;
            expect_eq!(audit(&store).await?, [], "the events after a collection ({gc:?}) of an empty store");
        }
        let stored = append_one(&store, event("first", "a")).await?;
        expect_eq!(stored.version, Version::new(1), "the first version after collections of an empty store");
    }

    /// M4: Concurrent garbage collections all succeed, and change no event.
    #[on(Both)]
    async fn m4_collections_at_the_same_time_end_well(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let all = audit(&store).await?;
        let collections = (0..4).map(|number| {
            let store = store.clone();
            let gc = if number % 2 == 0 { Gc::Quick } else { Gc::Full };
            async move { Ok(collect(&store, &background(), gc).await?) }
        });
        all_at_once(collections.collect::<Vec<_>>()).await?;
        same_events(&audit(&store).await?, &all, "the events after collections at the same time")?;
        append_one(&store, event("after", "a")).await?;
    }

    /// M5: `stats` of an idle store reports nothing queued, also after dropped and cancelled appends.
    #[on(Both)]
    async fn m5_stats_of_a_store_at_rest_have_nothing_queued(env: &Env) {
        let store = env.open().await?;
        for number in 0..100 {
            let token = CancellationToken::new();
            let ctx = Context::background().with_cancellation(token.clone());
            let appending = store.store_batch(&ctx, events(&format!("ended-{number}"), "a", 2).into());
            if number % 2 == 0 {
                polled(number % 5, appending).await;
            } else {
                drop(interrupted(number % 5, appending, || token.cancel()).await);
            }
        }
        // Anything still in progress comes before these; room may be released a moment after the answer.
        let mut queued = (u64::MAX, u64::MAX);
        for number in 0..100 {
            append_one(&store, event(format!("last-{number}"), "b")).await?;
            let stats = store.stats(&background()).await?;
            queued = (stats.queued_requests, stats.queued_bytes);
            if queued == (0, 0) {
                break;
            }
        }
        expect_eq!(queued, (0, 0), "the appends and bytes that are queued in a store at rest");
    }

    /// M5: `stats` reports the actual numbers of events and aggregates.
    #[on(Both)]
    async fn m5_stats_count_events_and_aggregates(env: &Env) {
        let store = env.open().await?;
        counts(&store, 0, 0, "an empty store").await?;
        append_history(&store, 10).await?;
        counts(&store, 10, 3, "a history").await?;
        append_history(&store, 10).await?;
        counts(&store, 10, 3, "a repeated history").await?;
        let refused = Batch::new(events("refused", "other", 2)).expected(Expected::Exists);
        expect_err!(store.store_batch(&background(), refused).await, Error::VersionConflict { .. }, "a false condition");
        counts(&store, 10, 3, "a refused append").await?;
        let many: Vec<_> = (0..500).map(|number| event(format!("own-{number}"), &format!("own-{number}"))).collect();
        append(&store, many).await?;
        counts(&store, 510, 503, "many aggregates").await?;
        // Aggregates whose names begin alike are different.
        append(&store, vec![event("prefix-1", "own"), event("prefix-2", "own-"), event("prefix-3", "own-0")]).await?;
        counts(&store, 513, 505, "aggregates whose names begin alike").await?;
        if env.profile.survives_closing() {
            let store = env.reopen(store).await?;
            append(&store, vec![event("again-1", "own-1"), event("again-2", "new")]).await?;
            counts(&store, 515, 506, "a reopened store").await?;
            counts(&env.reopen(store).await?, 515, 506, "a store that was only opened").await?;
        }
    }

    /// M5: While events are appended, `stats` reports numbers that were true at a moment of the call.
    async fn m5_stats_count_while_writers_write(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 10).await?;
        let store = if env.profile.survives_closing() { env.reopen(store).await? } else { store };
        let writers = write_triples(&store);
        let mut aggregates = 0;
        while writers.is_running() {
            let before = store.latest_version(&background()).await?;
            let stats = store.stats(&background()).await?;
            let after = store.latest_version(&background()).await?;
            let latest = stats.latest_version;
            ensure!((before..=after).contains(&latest), "the latest version {latest} is not of {before} to {after}");
            ensure!(stats.aggregates >= aggregates, "{} aggregates after {aggregates}", stats.aggregates);
            aggregates = stats.aggregates;
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        counts(&store, 10 + 3 * 40 * 3, 3 + 3, "writers").await?;
    }

    /// M6: The digest matches its definition, for any content of the events.
    #[on(Both)]
    async fn m6_the_digest_is_that_of_the_definition(env: &Env) {
        let store = env.open().await?;
        expect_eq!(store.digest(&background(), NEWEST).await?, Digest::EMPTY, "the digest of an empty store");
        append_history(&store, 20).await?;
        is_digest(&store, NEWEST, "a history").await?;
        let odd = [
            Event::builder("T", "a").id("no data"),
            Event::builder("T", "a").id("metadata").metadata_json("{ \"of\" : [1, 2] }").data("{}"),
            // Distinguished only by their lengths.
            Event::builder("AB", "C").id("D").data("12"),
            Event::builder("A", "BC").id("DD").data("12"),
            Event::builder("Änderung", "\u{0}").id("\u{1f980}").data(vec![0, 255, 254]),
            Event::builder("Large", "a").id("large").data(vec![7; 300_000]),
        ];
        for event in odd {
            append_one(&store, event.build()?).await?;
            is_digest(&store, NEWEST, "one more event").await?;
        }
        append(&store, events("many", "many", 3000)).await?;
        is_digest(&store, NEWEST, "a large batch").await?;
    }

    /// M6: The digest up to an older version is that of the events up to it, and never changes.
    async fn m6_the_digest_up_to_a_version_is_that_of_its_events(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 60).await?;
        append(&store, events("many", "many", 5000)).await?;
        let digests = digests_of(&audit(&store).await?);
        let mut random = env.random();
        let mut versions: Vec<u64> = (0..70).collect();
        // Versions at which a store may keep a digest.
        versions.extend([256, 512, 1000, 1024, 2048, 4096, 5000, 5060].iter().flat_map(|at| [at - 1, *at, at + 1]));
        versions.extend((0..30).map(|_| random.below(5061)));
        for round in ["of a store at rest", "of a store that has gone on"] {
            for &until in versions.iter().filter(|&&until| until <= 5060) {
                let digest = store.digest(&background(), until.into()).await?;
                expect_eq!(digest, digests[until as usize], "the digest until version {until} {round}");
            }
            append(&store, events("more", "more", 100)).await?;
        }
    }

    /// M6: Up to a version beyond the newest event, the digest is that of all.
    async fn m6_the_digest_until_beyond_the_newest_event_is_that_of_all(env: &Env) {
        let store = env.open().await?;
        for until in [1, 2, u64::MAX - 1, u64::MAX] {
            let digest = store.digest(&background(), until.into()).await?;
            expect_eq!(digest, Digest::EMPTY, "the digest until version {until} of an empty store");
        }
        append_history(&store, 20).await?;
        let all = store.digest(&background(), Version::new(20)).await?;
        for until in [21, 22, 1024, 1 << 32, u64::MAX - 1, u64::MAX] {
            let digest = store.digest(&background(), until.into()).await?;
            expect_eq!(digest, all, "the digest until version {until} of a store with 20 events");
        }
        is_digest(&store, NEWEST, "a history").await?;
    }

    /// M6: While events are appended, the digest is that of all events at a moment of the call, and the digest up to an
    /// older version does not change.
    #[on(Both)]
    async fn m6_the_digest_while_writers_write_is_that_of_a_moment(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 30).await?;
        let writers = write_triples(&store);
        let (mut all, mut older) = (Vec::new(), Vec::new());
        while writers.is_running() {
            let before = store.latest_version(&background()).await?.get();
            let digest = store.digest(&background(), NEWEST).await?;
            let after = store.latest_version(&background()).await?.get();
            all.push((before, digest, after));
            for until in [7, before] {
                older.push((until, store.digest(&background(), until.into()).await?));
            }
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        let digests = digests_of(&audit(&store).await?);
        let at = |version: u64| digests.get(usize::try_from(version).unwrap_or(usize::MAX));
        for (before, digest, after) in all {
            let is_of_a_moment = (before..=after).any(|version| at(version) == Some(&digest));
            ensure!(is_of_a_moment, "the digest {digest} is not that of a version from {before} to {after}");
        }
        for (until, digest) in older {
            expect_eq!(Some(&digest), at(until), "the digest until version {until} while writers write");
        }
    }

    /// M6: The digest is the same after reopening, at every version, and continues from there.
    #[needs(Persistence)]
    async fn m6_the_digest_is_the_same_after_reopening(env: &Env) {
        let mut store = env.open().await?;
        for round in 0..4 {
            let prefix = format!("round-{round}");
            append(&store, events(&prefix, "a", [1, 7, 1100, 3][round])).await?;
            let before = store.digest(&background(), NEWEST).await?;
            store = env.reopen(store).await?;
            expect_eq!(store.digest(&background(), NEWEST).await?, before, "the digest of a store that was opened again");
            let digests = digests_of(&load(&store, LoadOptions::all()).await?);
            for (until, expected) in digests.iter().enumerate().step_by(1 + digests.len() / 20) {
                let digest = store.digest(&background(), Version::new(until as u64)).await?;
                expect_eq!(digest, *expected, "the digest until version {until} of a store that was opened again");
            }
        }
    }

    /// M6: The recording times, the batches and the durabilities do not affect the digest.
    async fn m6_the_digest_is_of_the_events_and_not_of_how_they_came(env: &Env) {
        let (store, others) = (env.open().await?, env.fresh()?);
        let other = others.open().await?;
        let all = append_history(&store, 40).await?;
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        for (number, part) in all.chunks(7).enumerate() {
            let durability = if number % 2 == 0 { Durability::Buffered } else { Durability::Sync };
            let batch = Batch::new(part.to_vec()).recorded_at(vec![time; part.len()]).durability(durability);
            append(&other, batch).await?;
        }
        for until in [1, 20, 39, 40, u64::MAX] {
            let (one, two) = (
                store.digest(&background(), until.into()).await?,
                other.digest(&background(), until.into()).await?,
            );
            expect_eq!(two, one, "the digest until version {until} of a store with the same events, written otherwise");
        }
        append_one(&store, event("one more", "a")).await?;
        append_one(&other, event("another", "a")).await?;
        let (one, two) = (store.digest(&background(), NEWEST).await?, other.digest(&background(), NEWEST).await?);
        ensure!(one != two, "stores with different events have the digest {one}");
    }

    /// M6: What writes nothing does not change the digest: repetitions, refusals, garbage collections, and appends that
    /// were ended.
    #[on(Both)]
    async fn m6_what_writes_nothing_changes_no_digest(env: &Env) {
        let store = env.open().await?;
        let all = append_history(&store, 12).await?;
        let before = store.digest(&background(), NEWEST).await?;
        let same = async |what: &str| -> Checked {
            expect_eq!(store.digest(&background(), NEWEST).await?, before, "the digest after {what}");
            Ok(())
        };
        append(&store, all).await?;
        same("a repetition").await?;
        let refused = Batch::new(events("refused", "other", 2)).expected(Expected::Exists);
        expect_err!(store.store_batch(&background(), refused).await, Error::VersionConflict { .. }, "a false condition");
        same("a conflict").await?;
        let taken = Event::builder("Other", "a").id("history-1").build()?;
        let duplicate = store.store_batch(&background(), vec![event("new", "a"), taken].into()).await;
        expect_err!(duplicate, Error::DuplicateEvent { .. }, "an append of an id that is taken");
        same("a duplicate").await?;
        collect(&store, &background(), Gc::Full).await?;
        same("a collection").await?;
        let token = CancellationToken::new();
        token.cancel();
        let ctx = Context::background().with_cancellation(token);
        let cancelled = store.store_batch(&ctx, event("cancelled", "a").into()).await;
        expect_err!(cancelled, Error::Cancelled, "a cancelled append");
        same("a cancelled append").await?;
        append(&store, events("more", "a", 2)).await?;
        is_digest(&store, NEWEST, "all that").await?;
    }

    /// M6: A backup has the digest of its store at its version, and continues from there.
    #[needs(Backup)]
    async fn m6_a_backup_has_the_digest_of_its_store(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 20).await?;
        append(&store, events("many", "many", 1500)).await?;
        let target = env.unused_path();
        let latest = store.backup(&background(), &target).await?.latest_version;
        append_one(&store, event("later", "a")).await?;
        let backup = env.open_at(&target).await?;
        for until in [0, 1, 20, 1024, 1519, latest.get()] {
            let (of_store, of_backup) = (
                store.digest(&background(), until.into()).await?,
                backup.digest(&background(), until.into()).await?,
            );
            expect_eq!(of_backup, of_store, "the digest until version {until} of a backup");
        }
        append_one(&backup, event("its own", "a")).await?;
        is_digest(&backup, NEWEST, "a backup that has gone on").await?;
    }

    /// M6: A digest whose context ends returns the reason, and the next one is right.
    #[on(Both)]
    async fn m6_a_digest_that_is_ended_says_so(env: &Env) {
        let store = env.open().await?;
        append_large(&store).await?;
        let expected = store.digest(&background(), NEWEST).await?;
        for number in 0..14 {
            end_some_way(number, |ctx| {
                let store = store.clone();
                async move { store.digest(&ctx, NEWEST).await.map(drop) }
            })
            .await?;
            expect_eq!(store.digest(&background(), NEWEST).await?, expected, "the digest after one that was ended");
        }
        is_digest(&store, NEWEST, "digests that were ended").await?;
    }
}

/// Three writers, each with batches of three events for its own aggregate.
fn write_triples(store: &Store) -> Background<()> {
    Background::start((0..3).map(|writer| {
        let store = store.clone();
        async move {
            for number in 0..40 {
                append(&store, events(&format!("{writer}-{number}"), &format!("writer-{writer}"), 3)).await?;
            }
            Ok(())
        }
    }))
}

/// How a call ended that was to be ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    Cancelled,
    Expired,
    Dropped,
}

/// Ends a call in one of several ways, selected by a number: cancelled at the first or a later report of progress, by a
/// deadline, or dropped.
async fn end_some_way<F, Fut>(number: usize, call: F) -> Checked<Ended>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let token = CancellationToken::new();
    let ctx = Context::background().with_cancellation(token.clone());
    let outcome = match number {
        0..8 => {
            let told = AtomicUsize::new(0);
            let ctx = ctx.with_progress(Progress::new(move |_, _| {
                if told.fetch_add(1, Ordering::Relaxed) == number / 2 * 3 {
                    token.cancel();
                }
            }));
            call(ctx).await
        }
        8..12 => call(ctx.with_timeout(Duration::from_micros(200 << number.saturating_sub(8)))).await,
        _ => match polled(number - 11, call(ctx)).await {
            Some(outcome) => outcome,
            None => return Ok(Ended::Dropped),
        },
    };
    match outcome {
        Ok(()) => Ok(Ended::Done),
        Err(Error::Cancelled) if number < 8 => Ok(Ended::Cancelled),
        Err(Error::DeadlineExceeded) if (8..12).contains(&number) => Ok(Ended::Expired),
        Err(other) => Err(Failure::difference(
            format_args!("a call whose context was {}", if number < 8 { "cancelled" } else { "out of time" }),
            if number < 8 { "Ok or Err(Cancelled)" } else { "Ok or Err(DeadlineExceeded)" },
            &format!("Err({other:?})"),
        )),
    }
}

/// The reports of progress: what was done and the total.
type Told = Mutex<Vec<(u64, u64)>>;

/// A context that records the reported progress.
fn listening() -> (Context, Arc<Told>) {
    let told = Arc::new(Told::default());
    let listener = told.clone();
    let progress = Progress::new(move |done, total| {
        listener.lock().unwrap_or_else(PoisonError::into_inner).push((done, total));
    });
    (Context::background().with_progress(progress), told)
}

/// Fails unless progress was reported, and never went back or beyond the total.
#[track_caller]
fn only_goes_on(told: &Told, what: &str) -> Checked {
    let told = told.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(!told.is_empty(), "{what} ended and told nobody how far it had come");
    let mut before = 0;
    for &(done, total) in told.iter() {
        ensure!(done <= total, "{what} tells of {done} done of {total}");
        ensure!(done >= before, "{what} tells of {done} done after {before}");
        before = done;
    }
    Ok(())
}

async fn counts(store: &Store, events: u64, aggregates: u64, what: &str) -> Checked {
    let stats = store.stats(&background()).await?;
    expect_eq!(stats.latest_version.get(), events, "the number of events that `stats` gives after {what}");
    expect_eq!(stats.aggregates, aggregates, "the number of aggregates that `stats` gives after {what}");
    Ok(())
}

/// Fails unless the digest is that of the events that can be loaded.
async fn is_digest(store: &Store, until: Version, what: &str) -> Checked {
    let digest = store.digest(&background(), until).await?;
    let events = load(store, LoadOptions::all().before(until.next())).await?;
    expect_eq!(Some(&digest), digests_of(&events).last(), "the digest until version {until} after {what}");
    Ok(())
}
