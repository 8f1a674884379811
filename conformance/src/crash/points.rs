//! Named points of a store: `tracing` events with an explicit name.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use super::plan::{End, Incident};

/// Counts the points that the process passes, and ends the process at one of them.
pub(crate) struct Points {
    passed: Mutex<BTreeMap<&'static str, u64>>,
    end: Option<(String, u64, End)>,
}

impl Points {
    pub(crate) fn new(incident: &Incident) -> Self {
        let end = match incident {
            Incident::AtPoint { point, nth, end } => Some((point.clone(), *nth, *end)),
            _ => None,
        };
        Points { passed: Mutex::default(), end }
    }

    /// How often each point was passed.
    pub(crate) fn passed(&self) -> BTreeMap<String, u64> {
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.iter().map(|(&name, &count)| (name.to_owned(), count)).collect()
    }
}

/// Whether an event has an explicit name. Others are named after their location in the code.
fn is_point(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && !metadata.name().starts_with("event ")
}

/// The subscriber of the child.
pub(crate) struct Listener(pub(crate) std::sync::Arc<Points>);

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_point(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_point(metadata)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let name = event.metadata().name();
        let mut passed = self.0.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = passed.entry(name).or_default();
        *count += 1;
        if let Some((point, nth, end)) = &self.0.end
            && point == name
            && nth == count
        {
            end.end();
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
