//! The mark: the version up to which the index, or another follower of the log, has every event.

use eventstore_api::Digest;

/// A position in the history of one store: a version and everything up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) store: [u8; 16],
    pub(crate) version: u64,
    /// The digest of all events up to the version: a diverged copy of the store has another one.
    pub(crate) digest: Digest,
}

const FORMAT: u32 = 1;
const LEN: usize = 4 + 16 + 8 + 32 + 4;

impl Mark {
    /// The stored form.
    pub(crate) fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&FORMAT.to_be_bytes());
        bytes[4..20].copy_from_slice(&self.store);
        bytes[20..28].copy_from_slice(&self.version.to_be_bytes());
        bytes[28..60].copy_from_slice(self.digest.as_bytes());
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Mark::to_bytes) wrote; `None` if it is damaged or has another format.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let (content, checksum) = bytes.split_last_chunk()?;
        if crc32fast::hash(content) != u32::from_be_bytes(*checksum) {
            return None;
        }
        let (format, rest) = content.split_first_chunk()?;
        let (store, rest) = rest.split_first_chunk()?;
        let (version, digest) = rest.split_first_chunk()?;
        let digest = Digest::from_bytes(digest.try_into().ok()?);
        (u32::from_be_bytes(*format) == FORMAT).then_some(Mark {
            store: *store,
            version: u64::from_be_bytes(*version),
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_these_bytes_and_no_others() {
        let mark = Mark { store: [7; 16], version: 0x0102, digest: Digest::from_bytes([9; 32]) };
        let bytes = mark.to_bytes();
        let golden: &[&[u8]] = &[&[0, 0, 0, 1], &[7; 16], &[0, 0, 0, 0, 0, 0, 1, 2], &[9; 32]];
        assert_eq!(bytes[..60], golden.concat());
        assert_eq!(Mark::from_bytes(&bytes), Some(mark));
        for bit in 0..LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::from_bytes(&damaged), None, "bit {bit}");
        }
        assert_eq!(Mark::from_bytes(&bytes[1..]), None);
    }
}
