//! Records of the log as they are, for those who read all of them.

use std::ops::{ControlFlow, Range};

use eventstore_api::{Bytes, Direction};

use crate::engine::{KeyRange, Snapshot, Table};
use crate::keys;
use crate::shared::reason;

/// Bytes of records that are read from one snapshot.
const BYTES: usize = 1 << 20;

/// Records of the log, one behind the other.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) bytes: Bytes,
    pub(crate) ranges: Vec<(u64, Range<usize>)>,
    /// Keys among them that are no versions.
    pub(crate) strange_keys: Vec<Vec<u8>>,
}

/// Why a reading of rows came to its end.
pub(crate) enum End {
    /// There is room for no more.
    Full,
    /// All of the range was read.
    Range,
    /// The engine cannot read what comes next.
    Unreadable(String),
}

/// Reads the records of these versions, as many as there is room for.
pub(crate) fn read_rows<S: Snapshot>(snapshot: &S, versions: Range<u64>) -> (Rows, End) {
    let (first, last) = (keys::version_bytes(versions.start), keys::version_bytes(versions.end - 1));
    let mut bytes = Vec::new();
    let (mut ranges, mut strange_keys) = (Vec::new(), Vec::new());
    let mut end = End::Range;
    let scanned =
        snapshot.scan(Table::Events, KeyRange { first: &first, last: &last }, Direction::Forward, |key, value| {
            let Some(version) = keys::read_version(key) else {
                strange_keys.push(key.to_vec());
                return ControlFlow::Continue(());
            };
            let start = bytes.len();
            bytes.extend_from_slice(value);
            ranges.push((version, start..bytes.len()));
            if bytes.len() >= BYTES {
                end = End::Full;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
    if let Err(error) = scanned {
        end = End::Unreadable(format!("it cannot be read: {}", reason(&error)));
    }
    (Rows { bytes: bytes.into(), ranges, strange_keys }, end)
}
