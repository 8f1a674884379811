//! A session of appends: many concurrent appends over one connection, each with a number. Answers come in the order in
//! which they end. A message has one or more frames.

use std::time::Duration;

use bytes::Bytes;
use eventstore_api::{Batch, Error, Revision, StoreOutcome, Stored, Version};

use crate::Problem;
use crate::binary::{Malformed, Reader, message, put_number, put_step};
use crate::page::{MOST, flag, len, put_batch, take_batch};

/// A frame from a client.
#[derive(Debug)]
pub enum Frame {
    /// Append this batch.
    Append {
        /// The client's number of this append, unique among its unanswered appends.
        number: u64,
        /// The time limit of the append; `None` for no limit.
        timeout: Option<Duration>,
        /// The batch, or why it violates the contract.
        batch: Result<Batch, Error>,
    },
    /// The append with this number was cancelled. It is answered nevertheless, with its outcome.
    Cancel {
        /// Its number.
        number: u64,
    },
}

/// An answer from a server.
#[derive(Debug)]
pub struct Answer {
    /// The number of the append.
    pub number: u64,
    /// Its outcome.
    pub outcome: Result<Vec<Stored>, Box<Problem>>,
}

/// The largest size of a problem in bytes.
const MAX_PROBLEM: usize = 1 << 20;

const APPEND: u8 = 1;
const CANCEL: u8 = 2;
const STORED: u8 = 1;
const FAILED: u8 = 2;

/// Encodes frames as a message. A batch that is an error is left out.
#[must_use]
pub fn encode_frames(frames: &[Frame]) -> Vec<u8> {
    let size = |frame: &Frame| match frame {
        Frame::Append { batch: Ok(batch), .. } => len(batch),
        _ => 0,
    };
    message(frames.iter().map(|frame| size(frame) + 16).sum(), |out| {
        for frame in frames {
            match frame {
                Frame::Append { number, timeout, batch: Ok(batch) } => {
                    out.push(APPEND);
                    put_number(out, *number);
                    let micros = timeout.map(|timeout| u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX - 1));
                    put_number(out, micros.map_or(0, |micros| micros.saturating_add(1)));
                    put_batch(out, batch);
                }
                Frame::Append { batch: Err(_), .. } => {}
                Frame::Cancel { number } => {
                    out.push(CANCEL);
                    put_number(out, *number);
                }
            }
        }
    })
}

/// The frames of a message.
///
/// # Errors
///
/// [`Malformed`] if the bytes do not come from [`encode_frames`].
pub fn decode_frames(bytes: Bytes) -> Result<Vec<Frame>, Malformed> {
    let mut reader = Reader::new(bytes)?;
    let (mut frames, mut room) = (Vec::new(), MOST);
    while !reader.is_at_end() {
        if frames.len() >= MOST {
            return Err(Malformed("it has too many parts"));
        }
        let (kind, number) = (reader.byte()?, reader.number()?);
        frames.push(match kind {
            APPEND => {
                let timeout = reader.number()?.checked_sub(1).map(Duration::from_micros);
                Frame::Append { number, timeout, batch: take_batch(&mut reader, &mut room)? }
            }
            CANCEL => Frame::Cancel { number },
            _ => return Err(Malformed("a frame is unknown")),
        });
    }
    Ok(frames)
}

/// Encodes answers as a message.
#[must_use]
pub fn encode_answers(answers: &[Answer]) -> Vec<u8> {
    message(answers.len() * 16, |out| {
        for Answer { number, outcome } in answers {
            match outcome {
                Ok(stored) => {
                    out.push(STORED);
                    put_number(out, *number);
                    put_number(out, stored.len() as u64);
                    let (mut version, mut revision) = (0, 0);
                    for place in stored {
                        put_step(out, version, place.version.get());
                        put_step(out, revision, place.revision.get());
                        out.push(u8::from(place.outcome == StoreOutcome::AlreadyStored));
                        // The most common values of the next one.
                        (version, revision) =
                            (place.version.get().wrapping_add(1), place.revision.get().wrapping_add(1));
                    }
                }
                Err(problem) => {
                    out.push(FAILED);
                    put_number(out, *number);
                    let problem = problem.to_json();
                    put_number(out, problem.len() as u64);
                    out.extend_from_slice(problem.as_bytes());
                }
            }
        }
    })
}

/// The answers of a message.
///
/// # Errors
///
/// [`Malformed`] if the bytes do not come from [`encode_answers`].
pub fn decode_answers(bytes: Bytes) -> Result<Vec<Answer>, Malformed> {
    let mut reader = Reader::new(bytes)?;
    let mut answers = Vec::new();
    while !reader.is_at_end() {
        if answers.len() >= MOST {
            return Err(Malformed("it has too many parts"));
        }
        let (kind, number) = (reader.byte()?, reader.number()?);
        let outcome = match kind {
            STORED => Ok(take_places(&mut reader)?),
            FAILED => {
                let len = reader.count(1, MAX_PROBLEM)?;
                let problem = reader.bytes(len)?;
                Err(Box::new(serde_json::from_slice(&problem).map_err(|_| Malformed("a problem is not JSON"))?))
            }
            _ => return Err(Malformed("an answer is unknown")),
        };
        answers.push(Answer { number, outcome });
    }
    Ok(answers)
}

fn take_places(reader: &mut Reader) -> Result<Vec<Stored>, Malformed> {
    let count = reader.count(3, MOST)?;
    let (mut version, mut revision) = (0_u64, 0_u64);
    (0..count)
        .map(|_| {
            (version, revision) = (reader.step(version)?, reader.step(revision)?);
            let outcome = match flag(reader)? {
                false => StoreOutcome::Written,
                true => StoreOutcome::AlreadyStored,
            };
            let place = Stored::new(Version::new(version), Revision::new(revision), outcome);
            (version, revision) = (version.wrapping_add(1), revision.wrapping_add(1));
            Ok(place)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use eventstore_api::Event;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_come_back() {
        let event = Event::builder("T", "a").id("i").data("12").build().expect("valid");
        let append = |number, timeout| Frame::Append { number, timeout, batch: Ok(event.clone().into()) };
        let frames = [
            append(0, None),
            append(u64::MAX, Some(Duration::ZERO)),
            Frame::Cancel { number: 7 },
            append(1, Some(Duration::from_millis(1500))),
        ];
        let read = decode_frames(encode_frames(&frames).into()).expect("whole");
        assert_eq!(format!("{read:?}"), format!("{frames:?}"));
        let for_ever = decode_frames(encode_frames(&[append(1, Some(Duration::MAX))]).into()).expect("whole");
        assert!(
            matches!(for_ever[..], [Frame::Append { timeout: Some(timeout), .. }] if timeout > Duration::from_secs(1 << 40))
        );
        assert!(decode_frames(encode_frames(&[]).into()).expect("whole").is_empty());
    }

    proptest! {
        #[test]
        fn answers_come_back(places in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..20), number: u64) {
            let place = |(version, revision, again): &(u64, u64, bool)| {
                let outcome = if *again { StoreOutcome::AlreadyStored } else { StoreOutcome::Written };
                Stored::new(Version::new(*version), Revision::new(*revision), outcome)
            };
            let answers = [
                Answer { number, outcome: Ok(places.iter().map(place).collect()) },
                Answer { number: 3, outcome: Err(Box::new(Problem::from(&Error::Fenced { reason: "EIO".to_owned() }))) },
                Answer { number: 4, outcome: Ok(Vec::new()) },
            ];
            let read = decode_answers(encode_answers(&answers).into()).expect("whole");
            prop_assert_eq!(format!("{read:?}"), format!("{answers:?}"));
        }

        #[test]
        fn whatever_the_bytes_reading_them_ends(bytes: Vec<u8>) {
            let sealed: Bytes = message(0, |out| *out = bytes).into();
            let _ = decode_frames(sealed.clone());
            let _ = decode_answers(sealed);
        }
    }

    #[test]
    fn the_places_of_a_batch_take_three_bytes_each() {
        let places = (500..600).map(|n| Stored::new(Version::new(n), Revision::new(n - 400), StoreOutcome::Written));
        let message = encode_answers(&[Answer { number: 1, outcome: Ok(places.collect()) }]);
        assert!(message.len() < 320, "{}", message.len());
    }
}
