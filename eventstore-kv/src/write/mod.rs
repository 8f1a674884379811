//! Appends: from the queue, through the writer's decisions, to the commit of a group.

pub(crate) mod commit;
pub(crate) mod fenced;
pub(crate) mod queue;
pub(crate) mod revisions;
pub(crate) mod staging;
pub(crate) mod writer;
