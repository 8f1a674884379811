//! Checks that arbitrary text cannot break the command: URLs with options, lines of JSON, whole inputs. The targets in
//! `fuzz/` feed these functions; the tests here feed them the inputs in `fuzz/corpus`.

use std::fmt::{Debug, Display};
use std::io::Cursor;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use eventstore::backend::limits::RECORDED_AT_END;
use eventstore::backend::{Durability, Error, Event, Expected, Gc, RecordedEvent, StoreOptions, Version};
use eventstore_kv::{StoreUrl, UrlOptions};

use crate::failure::Failure;
use crate::input::{Input, Line, Place};
use crate::records::Wanted;
use crate::{compression, json};

/// Terminates a text in an input. UTF-8 never contains this byte.
const TEXT_END: u8 = 0xfe;

/// A store's URL, and also any other text for options. Nothing is opened.
pub(crate) fn url(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    comes_back::<Expected>(text);
    comes_back::<Version>(text);
    for result in [text.parse::<Durability>().map(drop), text.parse::<Gc>().map(drop)] {
        result.unwrap_or_else(check_refusal);
    }
    let url: StoreUrl = match text.parse() {
        Ok(url) => url,
        Err(refusal) => return check_refusal(refusal),
    };
    let options: Vec<_> = url.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let printed = format!("{}:{}?{}", url.scheme, url.path.display(), options.join("&"));
    assert_eq!(printed.parse::<StoreUrl>().expect("what was printed is read"), url);

    let store = |url: &StoreUrl| {
        let (mut options, mut given) = (StoreOptions::default(), UrlOptions::new(url));
        options.take_from(&mut given)?;
        given.finish()?;
        options.validate()?;
        Ok(options)
    };
    options_come_back(&url, store, store_options);
    #[cfg(feature = "lmdb")]
    options_come_back(&url, eventstore::lmdb::Options::from_url, |options| {
        format!(
            "create_if_missing={}&map_size={}&max_map_size={}&read_ahead={}&{}",
            options.create_if_missing,
            options.map_size,
            options.max_map_size,
            options.read_ahead,
            store_options(&options.store)
        )
    });
    #[cfg(feature = "sled")]
    options_come_back(&url, eventstore::sled::Options::from_url, |options| {
        let (create, cache) = (options.create_if_missing, options.cache_capacity);
        format!("create_if_missing={create}&cache_capacity={cache}&{}", store_options(&options.store))
    });
}

fn store_options(options: &StoreOptions) -> String {
    let durability = match options.durability {
        Durability::Buffered => "buffered",
        _ => "sync",
    };
    format!(
        "durability={durability}&queue_requests={}&queue_bytes={}&group_events={}&group_bytes={}&index_events={}\
         &index_bytes={}&id_filter={}&segment_size={}&space_ahead={}&log_cache={}&aggregate_cache={}&revision_cache={}&compression={}&metrics_label={}",
        options.queue_requests,
        options.queue_bytes,
        options.group_events,
        options.group_bytes,
        options.index_events,
        options.index_bytes,
        options.id_filter,
        options.segment_size,
        options.space_ahead,
        options.log_cache,
        options.aggregate_cache,
        options.revision_cache,
        options.compression,
        options.metrics_label
    )
}

/// Accepted options that are all printed in full are accepted again, and are the same.
fn options_come_back<O: Debug>(
    url: &StoreUrl,
    read: impl Fn(&StoreUrl) -> Result<O, Error>,
    print: impl Fn(&O) -> String,
) {
    match read(url) {
        Ok(options) => {
            let printed = format!("{}:{}?{}", url.scheme, url.path.display(), print(&options));
            let again = printed.parse().and_then(|url| read(&url)).expect("what was printed is read");
            assert_eq!(format!("{again:?}"), format!("{options:?}"));
        }
        Err(refusal) => check_refusal(refusal),
    }
}

fn comes_back<T: FromStr<Err = Error> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => assert_eq!(value.to_string().parse::<T>().expect("what was printed is read"), value),
        Err(refusal) => check_refusal(refusal),
    }
}

fn check_refusal(refusal: Error) {
    assert!(matches!(refusal, Error::InvalidOption { .. } | Error::InvalidVersion { .. }), "{refusal:?}");
    check_failure(&Failure::from(refusal));
}

/// An error is reported in one line.
fn check_failure(failure: &Failure) {
    let told = crate::failure::escape_controls(&failure.to_string());
    assert!(told.starts_with("error[") && !told.contains(char::is_control), "{told:?}");
}

/// A line as written by a user; and also the parts of an event, separated by `fe`, as stored by a program: the data,
/// the metadata, the aggregate id, the type and the id.
pub(crate) fn line(input: &[u8]) {
    match json::parse(input) {
        Ok(entry) => {
            // Each field is a valid time or number, or is refused.
            let _ = (entry.version(), entry.revision(), entry.recorded_at());
            check_line(&entry.event, input.len() as u64);
        }
        Err(failure) => check_failure(&failure),
    }
    let parts: Vec<_> = input.splitn(5, |&byte| byte == TEXT_END).collect();
    let part = |at: usize| String::from_utf8_lossy(parts.get(at).unwrap_or(&b"default".as_slice())).into_owned();
    let event = || Event::builder(part(3), part(2)).id(part(4)).data(parts[0].to_vec());
    // Most inputs are not valid metadata; then try the rest of the event.
    if let Ok(event) = event().metadata_json(part(1)).build().or_else(|_| event().build()) {
        check_line(&event, input.iter().fold(0, |time: u64, &byte| time.rotate_left(8) ^ u64::from(byte)));
    }
}

/// A printed event is one line, and is read as the same event, which prints the same.
fn check_line(event: &Event, micros: u64) {
    // `None` on systems whose clocks end earlier.
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros)).unwrap_or(SystemTime::UNIX_EPOCH);
    let print = |event: &Event| {
        let mut line = Vec::new();
        json::write(&mut line, &RecordedEvent::new(Version::new(micros), micros.into(), at, event.clone()))
            .expect("in memory");
        line
    };
    let line = print(event);
    assert!(!line.iter().any(|byte| matches!(byte, b'\n' | b'\r')), "it has an end of a line in it");
    let read = json::parse(&line).expect("what was printed is read");
    assert_eq!(&read.event, event);
    assert_eq!(print(&read.event), line);
    let places = (read.version().expect("a number"), read.revision().expect("a number"));
    assert_eq!(places, (Some(micros), Some(micros)));
    let time = read.recorded_at().expect("a time that was printed is read");
    // Times that cannot be recorded are printed as the nearest allowed one.
    if Duration::from_micros(micros) < RECORDED_AT_END {
        assert_eq!(time, Some(at));
    }
}

/// The most bytes of lines taken from one input: a few compressed bytes can become gigabytes.
const MOST_TAKEN: usize = 1 << 20;

/// A whole input, compressed or not. Without compression, its lines are all of it. If it is split by its apparent
/// format, its records are in order, and each is one line.
pub(crate) fn input(bytes: &[u8]) {
    lines(bytes);
    let mut last = None;
    taken(bytes, Wanted::Any { is_mapped: true }, |record| {
        let Place { line, element } = record.place;
        let place = (element, line);
        assert!(last.is_none_or(|last| last < place), "{last:?} comes before {place:?}");
        last = Some(place);
        // Invalid text stays as it is.
        assert!(record.problem.is_some() || !record.bytes.contains(&b'\n'));
    });
}

fn lines(bytes: &[u8]) {
    let (mut text, mut number, mut is_over) = (Vec::new(), 0, false);
    let (is_refused, is_whole) = taken(bytes, Wanted::Lines, |line| {
        assert!(!is_over, "nothing comes behind a line that is cut");
        number += 1;
        assert_eq!(line.place, Place { line: number, element: None });
        assert!(!line.bytes.contains(&b'\n'));
        text.extend_from_slice(line.bytes);
        text.extend_from_slice(if line.is_cut { b"" } else { b"\n" });
        is_over = line.is_cut;
    });
    if is_whole && compression::is_plain(bytes) {
        assert!(!is_refused && text == bytes, "the lines of an input are all of it");
    }
}

/// Takes the records of an input. Returns whether it ended with a failure, and whether anything followed that.
fn taken(bytes: &[u8], wanted: Wanted, mut each: impl FnMut(Line<'_>)) -> (bool, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut lines = Input::from_reader(Cursor::new(bytes.to_vec())).into_records(wanted).expect("a thread");
    let (mut taken, mut is_refused) = (0, false);
    while let Some(line) = runtime.block_on(lines.next()) {
        assert!(!is_refused, "nothing comes behind a failure");
        match line {
            Ok(line) => {
                taken += line.bytes.len();
                each(line);
            }
            Err(failure) => {
                // A panic in a decompressor would be a bug.
                assert!(!failure.to_string().contains("panic"), "{failure}");
                check_failure(&failure);
                is_refused = true;
            }
        }
        if taken > MOST_TAKEN {
            return (is_refused, false);
        }
    }
    (is_refused, true)
}

#[cfg(test)]
#[path = "../fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    const ROOT: &str = env!("CARGO_MANIFEST_DIR");

    #[test]
    fn addresses_of_the_corpus_come_back_or_are_refused() {
        replay(ROOT, "url", super::url);
    }

    #[test]
    fn lines_of_the_corpus_come_back_or_are_refused() {
        replay(ROOT, "line", super::line);
    }

    #[test]
    fn inputs_of_the_corpus_are_read_or_refused() {
        replay(ROOT, "input", super::input);
    }
}
