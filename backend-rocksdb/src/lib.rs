//! The rocksdb backend.
