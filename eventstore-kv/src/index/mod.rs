//! The index by id and by aggregate: in memory for the newest events, in the engine's tables for the rest; and the
//! filter that recognises new ids.

pub(crate) mod aggregates;
pub(crate) mod filter;
pub(crate) mod filters;
pub(crate) mod indexer;
pub(crate) mod recent;
pub(crate) mod view;
