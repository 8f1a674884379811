//! What becomes of a change when somebody else changed the same to-do meanwhile.

use synckit::core::Why;
use synckit::{Conflict, Resolution};

use crate::domain::{Todo, TodoEvent};

/// Decides again: what was wanted, on the to-do as it is now.
///
/// Done by two people is done once. A new text for something that is done is rejected. Of two new texts the one that comes to
/// the hub last stays.
pub fn decide_again(todo: &Todo, conflict: &Conflict) -> Resolution {
    if let Why::Refused(reason) = &conflict.why {
        return Resolution::Reject(reason.clone()); // the hub will never take it
    }
    // Each wish led to one event, and each event is a batch of its own.
    let [event] = conflict.events.as_slice() else { return Resolution::Wait };
    let Ok(wish) = event.decode::<TodoEvent>() else { return Resolution::Wait };
    match todo.decide(&wish.into()) {
        Ok(events) if events.is_empty() => Resolution::Drop, // it is so already
        Ok(_) => Resolution::AppendAnyway,                   // it leads to the same event again
        Err(refused) => Resolution::Reject(refused.to_string()),
    }
}
