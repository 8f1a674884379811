//! The store's directory: opening, repairing, compressing, backing up and restoring.

pub(crate) mod backup;
pub(crate) mod compress;
pub(crate) mod directory;
pub(crate) mod head;
pub(crate) mod open;
pub(crate) mod place;
pub(crate) mod transfer;
