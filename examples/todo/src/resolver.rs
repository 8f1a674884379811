//! What becomes of a change when somebody else changed the same to-do meanwhile.

use eventstore::Aggregate;
use synckit::core::Why;
use synckit::{Answer, Conflict, Entry, Replica, Resolution, Resolver, async_trait};

use crate::domain::{Todo, TodoEvent};

/// Decides again: what was wanted, on the to-do as it is now.
///
/// Done by two people is done once. A new text for something that is done is rejected. Of two new texts the one that comes to
/// the hub last stays.
#[derive(Debug)]
pub struct DecideAgain(pub Replica);

/// The reason of rejections that nobody needs to hear of: what was wanted is so.
pub const SO_ALREADY: &str = "it is so already";

#[async_trait]
impl Resolver for DecideAgain {
    async fn resolve(&self, conflict: &Conflict) -> synckit::Result<Answer> {
        if let Why::Refused(reason) = &conflict.why {
            return Ok(Resolution::Reject(reason.clone()).into()); // the hub will never take it
        }
        // Each wish led to one event, and each event is a batch of its own.
        let [event] = conflict.events.as_slice() else { return Ok(Resolution::Wait.into()) };
        let mut todo = Todo::default();
        for entry in self.0.load().aggregate(event.aggregate_id()).await?.entries {
            // The pending ones end with what is decided here, and what came after it.
            if !matches!(&entry, Entry::Pending(pending) if pending.batch >= conflict.batch) {
                todo.apply(entry.event().decode()?);
            }
        }
        let wish = event.decode::<TodoEvent>()?.into();
        Ok(match todo.decide(&wish) {
            Ok(events) if events.is_empty() => Resolution::Reject(SO_ALREADY.to_owned()),
            Ok(_) => Resolution::AppendAnyway, // it leads to the same event again
            Err(refused) => Resolution::Reject(refused.to_string()),
        }
        .into())
    }
}
