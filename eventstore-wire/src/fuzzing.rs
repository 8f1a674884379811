//! Checks that arbitrary bytes cannot harm a server or a client. The targets in `fuzz/` feed these functions; the tests
//! here feed them the inputs in `fuzz/corpus`. Compiled only for fuzzers and tests.

use bytes::Bytes;
use eventstore_api::LoadOptions;

use crate::binary::message;
use crate::{
    Appended, Frame, Info, LineOfWork, PageForm, Problem, Pushed, Query, aggregate_query, decode_answers,
    decode_batches, decode_frames, decode_page, encode_answers, encode_batches, encode_frames, encode_page, load_query,
    read_batches, read_events,
};

/// Content with its checksum, which a fuzzer would never guess.
fn sealed(content: &[u8]) -> Bytes {
    message(content.len(), |out| out.extend_from_slice(content)).into()
}

/// Arbitrary bytes from a client. The first byte selects the kind of message. Whatever is read can be written, and then
/// reads the same.
pub fn request(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 5 {
        0 => {
            let Ok(frames) = decode_frames(sealed(rest)) else { return };
            let is_sound = |frame: &Frame| !matches!(frame, Frame::Append { batch: Err(_), .. });
            let frames: Vec<_> = frames.into_iter().filter(is_sound).collect();
            let again = decode_frames(encode_frames(&frames).into()).expect("as it was written");
            assert_eq!(format!("{again:?}"), format!("{frames:?}"));
        }
        1 => {
            let Ok(batches) = decode_batches(sealed(rest)) else { return };
            let batches: Vec<_> = batches.into_iter().flatten().collect();
            let again = decode_batches(encode_batches(&batches).into()).expect("as it was written");
            let again: Vec<_> = again.into_iter().map(|batch| batch.expect("it was one")).collect();
            assert_eq!(format!("{again:?}"), format!("{batches:?}"));
        }
        2 => {
            for incoming in read_events(rest).into_iter().flatten() {
                let line = serde_json::to_string(&incoming.event).expect("an event has a JSON form");
                let again = read_events(line.as_bytes()).expect("as it was written");
                assert_eq!(again[0].event, incoming.event);
            }
        }
        3 => {
            let _ = read_batches(rest);
        }
        _ => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            let Ok(mut query) = Query::new(text) else { return };
            if let Ok(options) = query.load() {
                let text = load_query(&options).finish();
                let mut again = Query::new(&text).expect("it was written");
                assert_eq!(again.load().expect(&text), options, "{text}");
                again.finish().expect("nothing else was written");
            }
            let Ok(mut query) = Query::new(text) else { return };
            if let Ok(options) = query.aggregates() {
                let text = aggregate_query(&options).finish();
                assert_eq!(Query::new(&text).expect("it was written").aggregates().expect(&text), options, "{text}");
            }
            let _ = (query.flag("full"), query.duration("timeout"), query.finish());
        }
    }
}

/// Arbitrary bytes from a server, likewise.
pub fn answer(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => {
            let options = LoadOptions::all();
            let Ok(page) = decode_page(sealed(rest), &options) else { return };
            let again = decode_page(encode_page(&page).into(), &options).expect("as it was written");
            assert_eq!((again.events, again.head), (page.events, page.head));
        }
        1 => {
            let Ok(answers) = decode_answers(sealed(rest)) else { return };
            let again = decode_answers(encode_answers(&answers).into()).expect("as it was written");
            assert_eq!(format!("{again:?}"), format!("{answers:?}"));
        }
        2 => {
            let Ok(problem) = serde_json::from_slice::<Problem>(rest) else { return };
            let error = problem.clone().into_error("http://localhost");
            // Never report an outcome as certain if the server did not know it.
            if problem.written == "unknown" && problem.code == "outcome_unknown" {
                assert_eq!(error.written(), eventstore_api::Written::Unknown);
            }
            let _ = error.to_string();
        }
        _ => {
            let _ = serde_json::from_slice::<Info>(rest);
            let _ = serde_json::from_slice::<PageForm>(rest);
            let _ = serde_json::from_slice::<Appended>(rest);
            let _ = serde_json::from_slice::<Pushed>(rest);
            let _ = serde_json::from_slice::<LineOfWork<Appended>>(rest);
            // Bytes without a checksum are refused as well.
            let _ = decode_page(Bytes::copy_from_slice(rest), &LoadOptions::all());
        }
    }
}

#[cfg(test)]
#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

    #[test]
    fn requests_of_the_corpus_are_read_or_refused() {
        replay(ROOT, "request", super::request);
    }

    #[test]
    fn answers_of_the_corpus_are_read_or_refused() {
        replay(ROOT, "answer", super::answer);
    }
}
