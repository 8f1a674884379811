//! The format on disk: records in the log, keys and values in the index, and the mark that ties the two together.

pub(crate) mod keys;
pub(crate) mod mark;
pub(crate) mod record;
