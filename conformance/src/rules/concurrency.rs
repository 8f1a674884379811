//! Many concurrent callers, whose calls are recorded and checked as one history; see [`history`](crate::history).

use std::sync::Arc;

use eventstore_api::{Batch, Durability, EventStore, Expected, Gc, LoadOptions, Version};

use crate::check::checks;
use crate::env::{Env, Store};
use crate::events::{background, event, events};
use crate::failure::Checked;
use crate::history::{Appended, Recorder};
use crate::random::Random;
use crate::reading::pages_of;
use crate::tasks::Background;

checks! {
    /// O1: Concurrent appends have one order, and an append that returned before another began has the smaller
    /// versions.
    #[on(Both)]
    async fn o1_appends_at_once_have_one_order_that_agrees_with_time(env: &Env) {
        let run = Run::begin(env).await?;
        run.write(8, 30).finish().await?;
        run.end([]).await?;
    }

    /// O1: Concurrent writers, readers, subscribers and maintenance leave one history.
    #[on(Both)]
    async fn o1_everything_at_once_leaves_one_history(env: &Env) {
        let run = Run::begin(env).await?;
        let others = [run.read(3, 20), run.follow(3), run.compete(3, 15), run.repeat(3, 10), run.leave(2, 20)];
        let writing = run.write(4, 25);
        for gc in [Gc::Quick, Gc::Quick] {
            run.store.run_gc(&background(), gc).await?;
            run.store.stats(&background()).await?;
        }
        writing.finish().await?;
        run.end(others).await?;
    }

    /// O5: Concurrent readers see prefixes of the store, never half of a batch, and never go back.
    #[on(Both)]
    async fn o5_readers_beside_writers_see_prefixes_that_never_go_back(env: &Env) {
        let run = Run::begin(env).await?;
        let readers = run.read(5, 30);
        run.write(4, 30).finish().await?;
        run.end([readers]).await?;
    }

    /// O6: What one caller was told, every later read of every caller finds.
    #[on(Both)]
    async fn o6_what_anyone_was_told_of_everyone_finds(env: &Env) {
        let run = Run::begin(env).await?;
        let writers = run.named("caller", 6, |recorder, who, _| async move {
            for number in 0..20 {
                let id = format!("{who} {number}");
                recorder.append(&who, event(&id, "a").into()).await?;
                recorder.get(&who, &id).await?;
                recorder.revision(&who, "a").await?;
                let latest = recorder.latest(&who).await?;
                // An event that another caller may be about to append.
                recorder.get(&who, &format!("caller {} {number}", latest.get() % 6)).await?;
            }
            Ok(())
        });
        run.end([writers]).await?;
    }

    /// W2: If the same append is made many times at once, one writes, and all get its position.
    #[on(Both)]
    async fn w2_repetitions_at_once_all_get_the_first_place(env: &Env) {
        let run = Run::begin(env).await?;
        let repetitions = run.repeat(8, 25);
        run.end([repetitions]).await?;
    }

    /// W3: Each condition has one winner, and a conflict reports a state from during the call.
    #[on(Both)]
    async fn w3_each_condition_has_one_winner_and_conflicts_are_true(env: &Env) {
        let run = Run::begin(env).await?;
        let writers = run.compete(6, 25);
        run.end([writers]).await?;
    }

    /// C4: Appends that are dropped at any moment, among others that are not, leave one history.
    #[on(Both)]
    async fn c4_dropped_appends_among_others_leave_one_history(env: &Env) {
        let run = Run::begin(env).await?;
        let leaving = run.leave(6, 30);
        run.write(3, 20).finish().await?;
        run.end([leaving]).await?;
    }

    /// S1: Concurrent subscribers get every event once, in order, whenever they begin.
    #[on(Both)]
    async fn s1_subscribers_beside_writers_lose_and_repeat_nothing(env: &Env) {
        let run = Run::begin(env).await?;
        let early = run.follow(4);
        let writing = run.write(4, 30);
        run.recorder.wait("waiter", Version::new(40)).await?;
        let late = run.follow(4);
        writing.finish().await?;
        run.end([early, late]).await?;
    }
}

const AGGREGATES: [&str; 3] = ["a", "b", "c"];

/// The event that subscribers wait for.
const LAST: &str = "last";

/// A store under the load of several kinds of callers.
struct Run {
    store: Store,
    recorder: Arc<Recorder>,
    seed: u64,
}

impl Run {
    async fn begin(env: &Env) -> Checked<Self> {
        let store = env.open().await?;
        Ok(Run { recorder: Recorder::new(&store), store, seed: env.seed })
    }

    /// Starts this many callers of a kind.
    fn named<F, Fut>(&self, kind: &str, callers: usize, call: F) -> Background<()>
    where
        F: Fn(Arc<Recorder>, String, Random) -> Fut,
        Fut: Future<Output = Checked> + Send + 'static,
    {
        let call = |number| {
            call(self.recorder.clone(), format!("{kind} {number}"), Random::new(self.seed.wrapping_add(number as u64)))
        };
        Background::start((0..callers).map(call).collect::<Vec<_>>())
    }

    /// Writers of batches of one to three events, with both durabilities.
    fn write(&self, writers: usize, appends: usize) -> Background<()> {
        self.named("writer", writers, move |recorder, who, mut random| async move {
            for number in 0..appends {
                let aggregate_id = AGGREGATES[below(&mut random, 3)];
                let new = events(&format!("{who} {number}"), aggregate_id, 1 + below(&mut random, 3));
                let durability = [Durability::Sync, Durability::Buffered][below(&mut random, 2)];
                recorder.append(&who, Batch::new(new).durability(durability)).await?;
            }
            Ok(())
        })
    }

    /// Readers that use every way of reading.
    fn read(&self, readers: usize, reads: usize) -> Background<()> {
        self.named("reader", readers, move |recorder, who, mut random| async move {
            for _ in 0..reads {
                let latest = recorder.latest(&who).await?.get();
                let mut options = LoadOptions::since(random.below(latest + 1).into());
                if random.below(3) == 0 {
                    options = LoadOptions::all().aggregate(AGGREGATES[below(&mut random, 3)]);
                }
                match random.below(6) {
                    0 => options = options.aggregate_prefix(["a", "ab"][below(&mut random, 2)]),
                    1 => options = options.since_revision(random.below(20).into()),
                    _ => {}
                }
                if random.below(2) == 0 {
                    options = options.backward();
                }
                if random.below(2) == 0 {
                    options = options.limit(random.below(20));
                }
                recorder.load(&who, options, pages_of(1 + below(&mut random, 20))).await?;
                recorder.revision(&who, AGGREGATES[below(&mut random, 3)]).await?;
                recorder.get(&who, &format!("writer 0 {}-1", random.below(30))).await?;
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }

    /// Subscribers to everything and to an aggregate, from the beginning and from later.
    fn follow(&self, subscribers: usize) -> Background<()> {
        self.named("subscriber", subscribers, move |recorder, who, mut random| async move {
            let mut options = LoadOptions::since(random.below(50).into());
            if random.below(2) == 0 {
                options = options.aggregate(AGGREGATES[0]);
            }
            recorder.subscribe(&who, options, LAST).await
        })
    }

    /// Writers that all want the same revision or version, and continue with what they are told.
    fn compete(&self, writers: usize, rounds: usize) -> Background<()> {
        self.named("competitor", writers, move |recorder, who, mut random| async move {
            let mut revision = 0;
            for round in 0..rounds {
                let new = event(format!("{who} {round}"), "wanted");
                let expected = match random.below(4) {
                    0 => Expected::LatestVersion(recorder.latest(&who).await?),
                    1 if round == 0 => Expected::NoEvents,
                    _ => Expected::Revision(revision.into()),
                };
                let outcome = recorder.append(&who, Batch::from(new).expected(expected)).await?;
                revision = match outcome {
                    Appended::Stored(stored) => stored[0].revision.get(),
                    Appended::Conflict { actual } if expected.is_about_aggregate() => actual,
                    _ => recorder.revision(&who, "wanted").await?,
                };
            }
            Ok(())
        })
    }

    /// Writers that all append the same events.
    fn repeat(&self, writers: usize, appends: usize) -> Background<()> {
        self.named("repeater", writers, move |recorder, who, mut random| async move {
            for number in 0..appends {
                let same = events(&format!("same {number}"), "repeated", 2);
                // If only one of the two is appended, the other comes alone or with it.
                let batch = if random.below(4) == 0 { same[..1].to_vec() } else { same };
                recorder.append(&who, batch.into()).await?;
            }
            Ok(())
        })
    }

    /// Writers that leave before or after they are answered.
    fn leave(&self, writers: usize, appends: usize) -> Background<()> {
        self.named("leaver", writers, move |recorder, who, mut random| async move {
            for number in 0..appends {
                let batch = events(&format!("{who} {number}"), "left", 3);
                recorder.append_polled(&who, below(&mut random, 6), batch.into()).await?;
            }
            Ok(())
        })
    }

    /// Waits for the others, appends the event that subscribers wait for, and checks the history.
    async fn end<const N: usize>(self, others: [Background<()>; N]) -> Checked {
        self.recorder.append("last writer", event(LAST, AGGREGATES[0]).into()).await?;
        for other in others {
            other.finish().await?;
        }
        // After the appends whose futures were dropped.
        self.recorder.append("last writer", event("barrier", "barrier").into()).await?;
        self.recorder.check().await
    }
}

fn below(random: &mut Random, end: u64) -> usize {
    usize::try_from(random.below(end)).unwrap_or_default()
}
