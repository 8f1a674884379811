//! O8, continued: filters, and the list of aggregates.

use std::time::{Duration, SystemTime};

use eventstore_api::limits::{MAX_AGGREGATE_ID_LEN, MAX_TYPE_LEN};
use eventstore_api::{
    AggregateOptions, Batch, CancellationToken, Context, Error, Event, EventStore, EventStoreExt, EventStream,
    LoadOptions, PageSize, RecordedEvent, Version,
};

use super::writing::awkward_names;
use crate::check::checks;
use crate::env::Store;
use crate::events::{append, append_history, append_one, background, event};
use crate::failure::{Checked, Failure};
use crate::random::Random;
use crate::reading::{audit, list, load, load_pages, pages_of, same_events, select, select_aggregates};
use crate::tasks::{Background, end_everywhere, interrupted, polled};

checks! {
    /// O8: A load with any filters returns what `load` returns, filtered: in each direction, with bounds and limits, in
    /// pages of any size.
    async fn o8_a_load_with_any_filters_is_the_load_filtered(env: &Env) {
        let store = env.open().await?;
        let mut random = env.random();
        append_mixed(&store, &mut random, 160).await?;
        let all = audit(&store).await?;
        for _ in 0..400 {
            let options = any_options(&mut random, &all);
            let expected = select(&all, &options);
            let what = format!("a load with {options:?}");
            same_events(&load(&store, options.clone()).await?, &expected, &what)?;
            let size = [pages_of(1), pages_of(2), pages_of(7), PageSize::new(1000, 300)][below(&mut random, 4)];
            let paged = load_pages(&store, options, size).await?;
            same_events(&paged, &expected, &format!("{what} in pages of {size:?}"))?;
        }
    }

    /// O8: Types are compared as a whole, and any of several may match; prefixes are compared byte by byte.
    async fn o8_filters_take_names_as_they_are(env: &Env) {
        let store = env.open().await?;
        let names = awkward_names();
        let named = |(at, name): (usize, &String)| {
            let event_type = if name.len() <= MAX_TYPE_LEN { name.as_str() } else { "T" };
            Event::builder(event_type, name.as_str()).id(format!("event-{at}")).build()
        };
        append(&store, names.iter().enumerate().map(named).collect::<Result<Vec<_>, _>>()?).await?;
        let all = audit(&store).await?;
        let mut asked = names;
        asked.extend([String::new(), "x".repeat(MAX_TYPE_LEN + 1), "x".repeat(MAX_AGGREGATE_ID_LEN + 1)]);
        for name in &asked {
            let every = LoadOptions::all();
            for options in [
                every.clone().types([name]),
                every.clone().types([name.as_str(), "a", "no such type"]),
                every.clone().aggregate_prefix(name),
                every.clone().aggregate_prefix(name).types(["a", "ab"]).backward(),
                every.aggregate(name).aggregate_prefix("a"),
            ] {
                let expected = select(&all, &options);
                same_events(&load(&store, options.clone()).await?, &expected, &format!("a load with {options:?}"))?;
            }
        }
    }

    /// O8: A limit counts the events that match.
    async fn o8_a_limit_counts_what_matches(env: &Env) {
        let store = env.open().await?;
        let typed = |number: usize| typed(&format!("event-{number}"), ["T", "U"][usize::from(number % 7 == 3)], "a");
        append(&store, (0..60).map(typed).collect::<Vec<_>>()).await?;
        let all = audit(&store).await?;
        for limit in [0, 1, 2, 3, 7, 8, 9, 60, u64::MAX] {
            let every = LoadOptions::all().types(["U"]).limit(limit);
            for options in [every.clone(), every.clone().backward(), every.clone().aggregate("a")] {
                let expected = select(&all, &options);
                expect_eq!(expected.len() as u64, limit.min(9), "the suite's own events that match with {options:?}");
                let what = format!("a load with {options:?}");
                same_events(&load(&store, options.clone()).await?, &expected, &what)?;
                let paged = load_pages(&store, options, pages_of(2)).await?;
                same_events(&paged, &expected, &format!("{what} in pages of two"))?;
            }
        }
    }

    /// O8: The beginning of a time period is included, and its end is excluded; times need not rise.
    async fn o8_times_bound_a_load_to_the_microsecond(env: &Env) {
        let store = env.open().await?;
        let times = [7_u64, 3, 3, 9, 1, 4, 8, 2, 4, 0, 9, 5].map(time);
        let named = |number: usize| event(format!("event-{number}"), ["a", "b"][number % 2]);
        append(&store, Batch::new((0..12).map(named).collect()).recorded_at(times.to_vec())).await?;
        let all = audit(&store).await?;
        // Also between two microseconds, where no event is recorded, and before 1970.
        let mut bounds: Vec<_> = (0..11).map(time).collect();
        bounds.extend([time(4) + Duration::from_nanos(1), time(4) - Duration::from_nanos(1)]);
        bounds.extend([SystemTime::UNIX_EPOCH - Duration::from_secs(1), time(u64::MAX >> 11)]);
        for since in bounds.iter().map(Some).chain([None]) {
            for before in bounds.iter().map(Some).chain([None]) {
                let mut options = LoadOptions::all();
                (options.recorded_since, options.recorded_before) = (since.copied(), before.copied());
                for options in [options.clone(), options.clone().backward(), options.aggregate("a")] {
                    let expected = select(&all, &options);
                    same_events(&load(&store, options.clone()).await?, &expected, &format!("a load with {options:?}"))?;
                }
            }
        }
    }

    /// O8: A load since a revision returns the events with a greater revision, of one aggregate or of all.
    async fn o8_a_load_since_a_revision_gives_what_has_a_greater_one(env: &Env) {
        let store = env.open().await?;
        append_history(&store, 60).await?;
        let all = audit(&store).await?;
        for revision in (0..33).chain([u64::MAX - 1, u64::MAX]) {
            let every = LoadOptions::all().since_revision(revision.into());
            let since = LoadOptions::since(20.into()).since_revision(revision.into());
            for options in [
                every.clone(),
                every.clone().aggregate("a"),
                every.clone().aggregate("a").backward(),
                every.clone().aggregate("a").limit(2),
                every.clone().aggregate("a").types(["Happened"]),
                every.aggregate("nobody"),
                since.clone().aggregate("b"),
                since.clone().aggregate("b").before(50.into()),
                since.before(50.into()).aggregate("b").backward().limit(3),
            ] {
                let expected = select(&all, &options);
                let what = format!("a load with {options:?}");
                same_events(&load(&store, options.clone()).await?, &expected, &what)?;
                let paged = load_pages(&store, options, pages_of(3)).await?;
                same_events(&paged, &expected, &format!("{what} in pages of three"))?;
            }
        }
    }

    /// O9: A page with filters is empty only if no more events match, however far away the next match is, and ends with
    /// the event that reaches its size in bytes.
    async fn o9_a_page_with_filters_is_empty_only_if_nothing_matches(env: &Env) {
        let store = env.open().await?;
        let wanted = |number: usize| [0, 1, 2, 4_000, 7_999].contains(&number);
        let each = |number: usize| typed(&format!("event-{number}"), ["T", "Wanted"][usize::from(wanted(number))], "a");
        append(&store, (0..4_000).map(each).collect::<Vec<_>>()).await?;
        append(&store, (4_000..8_000).map(each).collect::<Vec<_>>()).await?;
        let all = load(&store, LoadOptions::all()).await?;
        let every = LoadOptions::all().types(["Wanted"]);
        for options in [every.clone(), every.clone().backward(), every.clone().aggregate("a")] {
            let expected = select(&all, &options);
            expect_eq!(expected.len(), 5, "the suite's own events that match");
            for size in [pages_of(1), pages_of(4), PageSize::new(1000, 1), PageSize::FIRST] {
                let what = format!("pages of {size:?} with {options:?}");
                let page = store.load_page(&background(), &options, size).await?;
                ensure!(!page.events.is_empty(), "the first of {what} is empty");
                let most = if size.bytes == 1 { 1 } else { size.events };
                expect_eq!(page.events.len(), most.min(5), "the events of the first of {what}");
                same_events(&load_pages(&store, options.clone(), size).await?, &expected, &what)?;
            }
        }
        let nothing = store.load_page(&background(), &every.clone().types(["Nothing"]), pages_of(1)).await?;
        expect_eq!((nothing.events.len(), nothing.next), (0, None), "a page of a type that nothing has");
        expect_eq!(nothing.head, Version::new(8_000), "the head of a page of a type that nothing has");
    }

    /// O5: A load with filters, while events are appended, shows the matching events of the store as of its first page.
    #[on(Both)]
    async fn o5_a_load_with_filters_while_writers_write_shows_a_prefix(env: &Env) {
        let store = env.open().await?;
        let writers = write(&store, 4, 30);
        let (mut random, mut loads) = (env.random(), Vec::new());
        while writers.is_running() || loads.len() < 3 {
            let mut options = LoadOptions::all().types([TYPES[below(&mut random, 3)]]);
            if random.below(2) == 0 {
                options = options.aggregate_prefix("a");
            }
            if random.below(2) == 0 {
                options = options.backward();
            }
            let acknowledged = store.latest_version(&background()).await?;
            let first = store.load_page(&background(), &options, pages_of(3)).await?;
            ensure!(first.head >= acknowledged, "a load at version {acknowledged} has the head {} (O6)", first.head);
            let mut seen = first.events;
            if let Some(next) = first.next {
                seen.extend(load_pages(&store, next, pages_of(5)).await?);
            }
            loads.push((options, first.head, seen));
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        let all = audit(&store).await?;
        for (options, head, seen) in loads {
            let expected = select(&all, &options.clone().before(head.next()));
            same_events(&seen, &expected, &format!("a load at version {head} with {options:?}"))?;
        }
    }

    /// S1: A subscription with filters returns every matching event after its version once, in order: existing ones,
    /// then new ones, however many events do not match.
    #[on(Both)]
    async fn s1_a_subscription_with_filters_gives_each_match_without_a_seam(env: &Env) {
        let store = env.open().await?;
        append_mixed(&store, &mut env.random(), 30).await?;
        let every = LoadOptions::all();
        let options = [
            every.clone().types(["Paid"]),
            every.clone().types(["Paid", "Sent"]).aggregate_prefix("ab"),
            every.clone().aggregate("a").types(["Sent"]),
            every.clone().aggregate("a").since_revision(4.into()),
            LoadOptions::since(15.into()).since_revision(2.into()),
            every.clone().recorded_since(SystemTime::UNIX_EPOCH + Duration::from_secs(1)),
            every.clone().recorded_before(time(u64::MAX >> 11)).types(["Paid"]),
            every.types(["Last"]),
        ];
        let with_last = |options: LoadOptions| {
            let mut options = options;
            if !options.types.is_empty() {
                options.types.push("Last".to_owned()); // the event that ends all of them
            }
            options
        };
        let options = options.map(with_last);
        let subscribers =
            Background::start(options.clone().map(|options| until_last(store.subscribe(&background(), options))));
        let writers = write(&store, 3, 25);
        store.wait_for_events(&background(), 60.into()).await?;
        let later =
            Background::start(options.clone().map(|options| until_last(store.subscribe(&background(), options))));
        writers.finish().await?;
        // Several that end no subscription, one by one, and then one for each aggregate.
        for number in 0..20 {
            append_one(&store, typed(&format!("noise-{number}"), "Noise", "c")).await?;
        }
        let last = ["a", "ab"].map(|aggregate| typed(&format!("last of {aggregate}"), "Last", aggregate));
        append(&store, last.to_vec()).await?;
        let all = audit(&store).await?;
        for seen in [subscribers.finish().await?, later.finish().await?] {
            for (seen, options) in seen.iter().zip(&options) {
                let mut expected = select(&all, options);
                expected.truncate(1 + expected.iter().position(is_last).unwrap_or(expected.len()));
                same_events(seen, &expected, &format!("what a subscription with {options:?} gave"))?;
            }
        }
    }

    /// S1: A subscription with filters and a limit waits for that many matching events, and ends after them.
    async fn s1_a_subscription_with_filters_and_a_limit_ends_after_it(env: &Env) {
        let store = env.open().await?;
        let mut stream = store.subscribe(&background(), LoadOptions::all().types(["Paid"]).limit(2));
        for (number, event_type) in ["Sent", "Paid", "Sent", "Sent", "Paid"].into_iter().enumerate() {
            let id = format!("event-{number}");
            append_one(&store, typed(&id, event_type, "a")).await?;
            if event_type == "Paid" {
                let next = stream.next().await.unwrap_or(Err(Error::Closed))?;
                expect_eq!(next.event.id(), id, "the next event of a subscription to a type");
            } else {
                let early = polled(3, stream.next()).await;
                ensure!(early.is_none(), "a subscription to a type gives {early:?} after another type");
            }
        }
        let more = stream.next().await;
        ensure!(more.is_none(), "a subscription to two events of a type goes on: {more:?}");
    }

    /// C5: A read whose filters match little or nothing ends with its context, even if it has to read every event for
    /// one page, and leaves nothing behind.
    #[on(Both)]
    async fn c5_a_read_that_finds_little_ends_with_its_context(env: &Env) {
        let store = env.open().await?;
        let each = |number: usize| {
            let event_type = if number == 4_500 { "Wanted" } else { "T" };
            typed(&format!("event-{number}"), event_type, ["a", "b"][number % 2])
        };
        append(&store, (0..9_000).map(each).collect::<Vec<_>>()).await?;
        let (nothing, one) = (LoadOptions::all().types(["Nothing"]), LoadOptions::all().types(["Wanted"]));
        for (options, count) in [
            (nothing.clone(), 0),
            (nothing.clone().backward(), 0),
            (nothing.clone().aggregate("a"), 0),
            (one.clone(), 1),
            (one.clone().backward(), 1),
            (one.aggregate("a"), 1),
        ] {
            let page = |_, ctx: Context| {
                let (store, options) = (store.clone(), options.clone());
                async move { store.load_page(&ctx, &options, pages_of(10)).await.map(|page| page.events.len()) }
            };
            end_everywhere(page, async |_, ending, outcome| match outcome {
                Some(Err(Error::Cancelled | Error::DeadlineExceeded)) | None => Ok(()),
                Some(Ok(found)) if found == count => Ok(()),
                Some(other) => {
                    Err(Failure::new(format!("a page of {count} events that was {ending:?} is {other:?}: {options:?}")))
                }
            })
            .await?;
            // More in sequence than an engine has reader slots: none may leak.
            for _ in 0..30 {
                polled(1, page(0, background())).await;
            }
        }
        for polls in 0..4 {
            let token = CancellationToken::new();
            let ctx = Context::background().with_cancellation(token.clone());
            let mut stream = store.subscribe(&ctx, nothing.clone());
            let end = interrupted(polls, stream.next(), || token.cancel()).await;
            let end = end.map_or(Ok(()), |last| last.map(drop));
            expect_err!(end, Error::Cancelled, "the end of a cancelled subscription to nothing");
        }
        append_one(&store, event("last", "a")).await?;
        let store = env.reopen(store).await?;
        append_one(&store, event("again", "a")).await?;
    }

    /// O8: Aggregates are listed once each, in byte order of their ids, with their revisions and newest versions: all
    /// of them, by prefix, after an id, and as of a version, in pages of any size.
    async fn o8_aggregates_are_listed_in_the_order_of_their_ids(env: &Env) {
        let store = env.open().await?;
        let names = awkward_names();
        for round in 0..3 {
            for (at, name) in names.iter().enumerate() {
                if (at + round) % 4 > 0 {
                    append_one(&store, event(format!("{round}-{at}"), name)).await?;
                }
            }
        }
        let all = audit(&store).await?;
        let mut random = env.random();
        let mut asked = names;
        asked.extend([String::new(), "x".repeat(MAX_AGGREGATE_ID_LEN + 1), "no such aggregate".to_owned()]);
        for nth in 0..300 {
            let mut options = AggregateOptions::all();
            if nth % 3 > 0 {
                options = options.prefix(asked[below(&mut random, asked.len())].as_str());
            }
            if random.below(2) == 0 {
                options = options.after(asked[below(&mut random, asked.len())].as_str());
            }
            if random.below(2) == 0 {
                options = options.before(random.below(all.len() as u64 + 3).into());
            }
            let most = [0, 1, 2, 7, 1000, usize::MAX][below(&mut random, 6)];
            let listed = list(&store, options.clone(), most).await?;
            expect_eq!(listed, select_aggregates(&all, &options), "the aggregates with {options:?}, {most} a page");
        }
        let page = store.list_aggregates(&background(), &AggregateOptions::all(), 3).await?;
        expect_eq!(page.aggregates.len(), 3, "the aggregates of a page of three");
        expect_eq!(page.head.get(), all.len() as u64, "the head of a page of aggregates");
    }

    /// O8: A store without events lists no aggregates, and an aggregate whose only append was refused is not listed.
    async fn o8_aggregates_without_events_are_not_listed(env: &Env) {
        let store = env.open().await?;
        let page = store.list_aggregates(&background(), &AggregateOptions::all(), 10).await?;
        expect_eq!((page.aggregates, page.next), (vec![], None), "the aggregates of an empty store");
        expect_eq!(page.head, Version::ZERO, "the head of an empty list");
        append_one(&store, event("first", "a")).await?;
        let refused = Batch::from(event("new", "b")).expected(eventstore_api::Expected::Exists);
        expect_err!(
            store.store_batch(&background(), refused).await,
            Error::VersionConflict { .. },
            "an append that wants a new aggregate to exist"
        );
        let listed = list(&store, AggregateOptions::all(), 10).await?;
        let listed: Vec<_> = listed.iter().map(|aggregate| aggregate.aggregate_id.as_str()).collect();
        expect_eq!(listed, ["a"], "the aggregates after a refused append to a second");
    }

    /// O8: A list of aggregates, while events are appended, shows them as of its first page.
    #[on(Both)]
    async fn o8_aggregates_while_writers_write_are_those_of_a_moment(env: &Env) {
        let store = env.open().await?;
        let writers = Background::start((0..4_usize).map(|writer| {
            let store = store.clone();
            async move {
                for number in 0..40_usize {
                    // Existing and new aggregates, spread over the whole order.
                    let names = [format!("{}", number % 7), format!("{}-{writer}", number * 37 % 100)];
                    let new = |(at, name): (usize, &String)| event(format!("{writer}-{number}-{at}"), name);
                    append(&store, names.iter().enumerate().map(new).collect::<Vec<_>>()).await?;
                }
                Ok(())
            }
        }));
        let mut lists = Vec::new();
        while writers.is_running() || lists.len() < 3 {
            let acknowledged = store.latest_version(&background()).await?;
            let options = AggregateOptions::all().prefix(["", "3"][lists.len() % 2]);
            let first = store.list_aggregates(&background(), &options, 5).await?;
            ensure!(first.head >= acknowledged, "a list at version {acknowledged} has the head {} (O6)", first.head);
            let mut listed = first.aggregates;
            if let Some(next) = first.next {
                // Of an existing aggregate, and of a new one.
                let later = ["39-0", "3-later"].map(|name| event(format!("{name} {}", lists.len()), name));
                append(&store, later.to_vec()).await?;
                listed.extend(list(&store, next, 20).await?);
            }
            lists.push((options, first.head, listed));
            tokio::task::yield_now().await;
        }
        writers.finish().await?;
        let all = audit(&store).await?;
        for (options, head, listed) in lists {
            let expected = select_aggregates(&all, &options.clone().before(head.next()));
            expect_eq!(listed, expected, "the aggregates at version {head} with {options:?}");
        }
    }

    /// O8: The list of aggregates is the same after reopening, and its next page can be read then.
    #[needs(Persistence)]
    async fn o8_aggregates_are_the_same_after_reopening(env: &Env) {
        let mut store = env.open().await?;
        let each = |number: usize| event(format!("event-{number}"), &format!("{}", number * 7 % 23));
        append(&store, (0..60).map(each).collect::<Vec<_>>()).await?;
        let before = list(&store, AggregateOptions::all(), 1000).await?;
        let (mut listed, mut next) = (Vec::new(), Some(AggregateOptions::all()));
        while let Some(options) = next {
            let page = store.list_aggregates(&background(), &options, 4).await?;
            listed.extend(page.aggregates);
            next = page.next;
            store = env.reopen(store).await?;
            append_one(&store, event(format!("later-{}", listed.len()), "99")).await?;
        }
        expect_eq!(listed, before, "a list over several openings, as of its first page");
    }
}

const TYPES: [&str; 4] = ["Placed", "Paid", "Sent", "Pai"];
const AGGREGATES: [&str; 5] = ["a", "ab", "abc", "b", "c"];

fn typed(id: &str, event_type: &str, aggregate_id: &str) -> Event {
    let data = "x".repeat(id.len() * 7 % 60);
    let built = Event::builder(event_type, aggregate_id).id(id).data(data).build();
    built.expect("the suite's own events are valid")
}

/// A time that stores represent exactly.
fn time(micros: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}

fn below(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.below(end as u64)).unwrap_or_default()
}

/// Appends events of several types and aggregates, some of them with explicit times, which do not rise.
async fn append_mixed(store: &Store, random: &mut Random, count: usize) -> Checked {
    let mut appended = 0;
    while appended < count {
        let size = 1 + below(random, 5);
        let each = |number| {
            let (event_type, aggregate_id) = (TYPES[below(random, 4)], AGGREGATES[below(random, 5)]);
            typed(&format!("mixed-{number}"), event_type, aggregate_id)
        };
        let mut batch = Batch::new((appended..appended + size).map(each).collect());
        if random.below(3) > 0 {
            batch = batch.recorded_at((0..size).map(|_| time(random.below(10))).collect());
        }
        append(store, batch).await?;
        appended += size;
    }
    Ok(())
}

/// A load with random filters and bounds.
fn any_options(random: &mut Random, all: &[RecordedEvent]) -> LoadOptions {
    let mut options = LoadOptions::all();
    let version = |random: &mut Random| Version::new(random.below(all.len() as u64 + 2));
    // Each with a probability of one half or less: all together would match nothing.
    if random.below(3) == 0 {
        options.since = version(random);
    }
    if random.below(3) == 0 {
        options.before = Some(version(random));
    }
    if random.below(2) == 0 {
        options.types = (0..random.below(3)).map(|_| TYPES[below(random, 4)].to_owned()).collect();
    }
    if random.below(3) == 0 {
        options.aggregate_id = Some(AGGREGATES[below(random, 5)].to_owned());
    }
    if random.below(3) == 0 {
        options.aggregate_prefix = Some(["", "a", "ab", "abc", "b", "x"][below(random, 6)].to_owned());
    }
    if random.below(3) == 0 {
        options.recorded_since = Some(time(random.below(11)));
    }
    if random.below(3) == 0 {
        options.recorded_before = Some(time(random.below(11)));
    }
    if random.below(3) == 0 {
        options.since_revision = random.below(30).into();
    }
    if random.below(3) == 0 {
        options.limit = Some(random.below(12));
    }
    if random.below(2) == 0 { options.backward() } else { options }
}

/// Writers of batches of two events of several types and aggregates.
fn write(store: &Store, writers: usize, count: usize) -> Background<()> {
    Background::start((0..writers).map(|writer| {
        let store = store.clone();
        async move {
            for number in 0..count {
                let each = |at: usize| {
                    let (event_type, aggregate_id) = (TYPES[(number + at) % 3], AGGREGATES[(number + writer * at) % 5]);
                    typed(&format!("{writer}-{number}-{at}"), event_type, aggregate_id)
                };
                append(&store, vec![each(0), each(1)]).await?;
            }
            Ok(())
        }
    }))
}

fn is_last(event: &RecordedEvent) -> bool {
    event.event.event_type() == "Last"
}

/// The events of the stream, up to and including the last one.
async fn until_last(mut stream: EventStream) -> Checked<Vec<RecordedEvent>> {
    let mut seen: Vec<RecordedEvent> = Vec::new();
    while !seen.last().is_some_and(is_last) {
        match stream.next().await {
            Some(event) => seen.push(event?),
            None => return Err(Failure::new("a subscription that had to go on has ended")),
        }
    }
    Ok(seen)
}
