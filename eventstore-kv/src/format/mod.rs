//! What is on disk, byte for byte: records in the log, keys and values in the index, and the mark between the two.

pub(crate) mod keys;
pub(crate) mod mark;
pub(crate) mod record;
