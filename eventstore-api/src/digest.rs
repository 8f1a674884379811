use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::{Error, Event, RecordedEvent, Result};

/// A hash over every event up to a version. Two stores with the same events in the same order have the same digest,
/// whatever their engines. See [`EventStore::digest`](crate::EventStore::digest).
///
/// It is a hash chain. The digest of an empty store is 32 zero bytes. The digest after each event is the SHA-256 over
///
/// 1. the digest before it, 32 bytes
/// 2. its version
/// 3. its revision
/// 4. for each of id, type and aggregate id: the length in bytes, then the bytes
/// 5. the SHA-256, 32 bytes, over: the length of the metadata, the metadata, the data
///
/// with all integers as 8 bytes, big-endian. Because of the lengths, two different events never give the same input.
/// The recording time is left out: it differs between a store and an import of its export.
///
/// A store that keeps the digest of its newest event hashes only what is appended. From the digest at one version and
/// the events after it, [`chain`](Digest::chain) computes the digest at any later version.
///
/// The text form is 64 lower-case hexadecimal digits. A digest does not hide data: guessed data can be confirmed with
/// it.
///
/// ```
/// use eventstore_api::Digest;
///
/// let digest: Digest = "00".repeat(32).parse()?;
/// assert_eq!(digest, Digest::EMPTY);
/// assert_eq!(Digest::from_bytes(*digest.as_bytes()).to_string(), "00".repeat(32));
/// # Ok::<(), eventstore_api::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a store without events.
    pub const EMPTY: Digest = Digest([0; 32]);

    /// The digest with these bytes, as returned by [`as_bytes`](Digest::as_bytes).
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// The 32 bytes of the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest after this event, if `self` is the digest before it.
    #[must_use]
    pub fn chain(self, recorded: &RecordedEvent) -> Self {
        let event = &recorded.event;
        let mut hash = Sha256::new_with_prefix(self.0);
        hash.update(recorded.version.get().to_be_bytes());
        hash.update(recorded.revision.get().to_be_bytes());
        for text in [event.id(), event.event_type(), event.aggregate_id()] {
            hash.update(length(text));
            hash.update(text);
        }
        hash.update(content_hash(event));
        Digest(hash.finalize().into())
    }
}

/// Hashed separately, so that the chain can be computed without the content.
fn content_hash(event: &Event) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(length(event.metadata()));
    hash.update(event.metadata());
    hash.update(event.data());
    hash.finalize().into()
}

fn length(text: &str) -> [u8; 8] {
    (text.len() as u64).to_be_bytes()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Reads 64 hexadecimal digits, lower or upper case.
impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidOption {
            option: "digest".to_owned(),
            reason: format!("{text:?} is not 64 hexadecimal digits"),
        };
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() {
            return Err(invalid());
        }
        for (at, digit) in text.bytes().enumerate() {
            let digit = char::from(digit).to_digit(16).ok_or_else(invalid)?;
            bytes[at / 2] = bytes[at / 2] << 4 | digit as u8;
        }
        Ok(Digest(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{EventBuilder, Revision, Version};

    fn recorded(version: u64, revision: u64, event: EventBuilder) -> RecordedEvent {
        let event = event.build().expect("valid");
        RecordedEvent::new(Version::new(version), Revision::new(revision), SystemTime::UNIX_EPOCH, event)
    }

    fn event() -> EventBuilder {
        Event::builder("OrderPlaced", "order-42").id("o-1").data(r#"{"total":12}"#).metadata_json(r#"{"by":"me"}"#)
    }

    fn sha256(parts: &[&[u8]]) -> [u8; 32] {
        Sha256::digest(parts.concat()).into()
    }

    #[test]
    fn the_definition_is_pinned() {
        let content = sha256(&[&[0, 0, 0, 0, 0, 0, 0, 11], br#"{"by":"me"}"#, br#"{"total":12}"#]);
        let first = sha256(&[
            &[0; 32],
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 3],
            b"o-1",
            &[0, 0, 0, 0, 0, 0, 0, 11],
            b"OrderPlaced",
            &[0, 0, 0, 0, 0, 0, 0, 8],
            b"order-42",
            &content,
        ]);
        let chained = Digest::EMPTY.chain(&recorded(1, 1, event()));
        assert_eq!(chained.as_bytes(), &first);
        let second = recorded(2, 2, event().id("o-2").data(vec![]));
        // Computed by another program.
        let golden = [
            "56553757ffc0d79f80280981108e25fa3881d317bbd7309de5fb67334f8efa16",
            "c879507129f38c7c599009561f1bae470fba4d3b5d86ea527eb505d6bed9899c",
        ];
        assert_eq!([chained, chained.chain(&second)].map(|digest| digest.to_string()), golden);
    }

    #[test]
    fn everything_counts_but_the_time_of_recording() {
        let digest = |recorded: &RecordedEvent| Digest::EMPTY.chain(recorded);
        let all = [
            recorded(1, 1, event()),
            recorded(2, 1, event()),
            recorded(1, 2, event()),
            recorded(1, 1, event().id("o-")),
            recorded(1, 1, Event::builder("OrderPlacedo", "rder-42").id("o-1").data(r#"{"total":12}"#)),
            recorded(1, 1, event().data("")),
            recorded(1, 1, event().metadata_json(r#"{"by": "me"}"#)),
            recorded(1, 1, event().metadata_json("{}").data(r#"{"by":"me"}{"total":12}"#)),
        ];
        let digests: std::collections::HashSet<_> = all.iter().map(digest).collect();
        assert_eq!(digests.len(), all.len());
        let mut later = all[0].clone();
        later.recorded_at += Duration::from_secs(1);
        assert_eq!(digest(&later), digest(&all[0]));
        assert_ne!(digest(&all[0]).chain(&all[1]), digest(&all[1]).chain(&all[0]), "the order counts");
    }

    #[test]
    fn the_text_form_is_read_back_and_nothing_else_is() {
        let digest = Digest::EMPTY.chain(&recorded(1, 1, event()));
        let text = digest.to_string();
        assert_eq!(text.parse::<Digest>().ok(), Some(digest));
        assert_eq!(text.to_uppercase().parse::<Digest>().ok(), Some(digest));
        assert_eq!(format!("{digest:?}"), format!("Digest({text})"));
        for wrong in [&text[1..], &format!("{text}0"), &format!("{text}00"), &text.replace('0', "g"), "", "+0"] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong:?}");
        }
        assert!("\u{e4}".repeat(32).parse::<Digest>().is_err());
    }
}
