//! The file of lines skipped by an import: one JSON object per line, which can be corrected and imported again.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::batches::Rejected;
use crate::failure::Failure;
use crate::json;

/// A line of the file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Reject<'a> {
    /// Its line number in the input.
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    element: Option<u64>,
    /// Why it was skipped.
    #[serde(borrow)]
    error: Cow<'a, str>,
    /// The original line, if it is UTF-8.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    input: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    input_base64: Option<Cow<'a, str>>,
}

/// A file of skipped lines. Each line has been passed to the operating system when [`add`](Rejects::add) returns.
#[derive(Debug)]
pub(crate) struct Rejects {
    name: String,
    file: File,
}

impl Rejects {
    /// Creates the file. A nonempty file is refused: it may have lines that were not corrected yet.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let cannot_write = |error| Failure::io(format_args!("write {name}"), &error);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(cannot_write)?;
        let metadata = file.metadata().map_err(cannot_write)?;
        if metadata.is_file() && metadata.len() > 0 {
            let error = std::io::ErrorKind::AlreadyExists.into();
            return Err(Failure::io(format_args!("write {name}"), &error)
                .note("it may have lines that were not corrected yet: remove it, or name another file"));
        }
        Ok(Rejects { name, file })
    }

    pub(crate) fn add(&mut self, rejected: &Rejected) -> Result<(), Failure> {
        let text = std::str::from_utf8(&rejected.input);
        let reject = Reject {
            line: rejected.place.line,
            element: rejected.place.element,
            error: rejected.reason.as_str().into(),
            input: text.ok().map(Cow::from),
            input_base64: text.is_err().then(|| BASE64.encode(&rejected.input).into()),
        };
        let written = serde_json::to_vec(&reject).map_err(std::io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.file.write_all(&line)
        });
        written.map_err(|error| Failure::io(format_args!("write {}", self.name), &error))
    }
}

/// The content of a line of such a file.
#[derive(Debug, PartialEq)]
pub(crate) struct Wrapped {
    pub(crate) input: Vec<u8>,
    /// The number of the original record.
    pub(crate) number: u64,
}

/// The original line in a line of such a file.
pub(crate) fn input_of(line: &[u8]) -> Result<Wrapped, Failure> {
    let text = json::object(line)?;
    let reject: Reject<'_> = serde_json::from_str(text).map_err(|error| {
        Failure::malformed(json::describe(&error)).note("it is not a line that --skip-invalid has written")
    })?;
    let input = match (reject.input, reject.input_base64) {
        (Some(text), None) => text.into_owned().into_bytes(),
        (None, Some(base64)) => json::decode("input_base64", &base64)?,
        _ => return Err(Failure::malformed("it must have either input or input_base64")),
    };
    Ok(Wrapped { input, number: reject.element.unwrap_or(reject.line) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Place;

    #[test]
    fn what_is_left_out_comes_back_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("rejected.jsonl");
        let inputs: [&[u8]; 5] = [b"{\"id\":", b"", b"\xff\x00", "é\t\"\u{2028}".as_bytes(), b"\r"];
        let mut rejects = Rejects::create(&path).expect("created");
        for (index, input) in inputs.iter().enumerate() {
            let place = Place { line: index as u64 + 1, element: (index == 1).then_some(9) };
            rejects.add(&Rejected { place, reason: "because".to_owned(), input: (*input).into() }).expect("written");
        }
        let written = std::fs::read_to_string(&path).expect("UTF-8");
        let back: Vec<_> = written.lines().map(|line| input_of(line.as_bytes()).expect("was written")).collect();
        let numbers = [1, 9, 3, 4, 5];
        assert_eq!(back.iter().map(|wrapped| wrapped.number).collect::<Vec<_>>(), numbers);
        assert_eq!(back.into_iter().map(|wrapped| wrapped.input).collect::<Vec<_>>(), inputs);
        assert!(written.starts_with(r#"{"line":1,"error":"because","input":"{\"id\":"}"#), "{written}");
        assert!(written.contains(r#"{"line":2,"element":9,"error":"because","input":""}"#), "{written}");
        assert!(written.contains(r#"{"line":3,"error":"because","input_base64":"/wA="}"#), "{written}");

        let failure = Rejects::create(&path).expect_err("it holds lines");
        assert!(failure.message().contains("rejected.jsonl") && failure.message().contains("remove it"), "{failure}");
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), written);
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "{}",
            "[]",
            r#"{"id":"e1","type":"T","aggregate_id":"a"}"#,
            r#"{"line":1,"error":"e"}"#,
            r#"{"line":1,"error":"e","input":"","input_base64":""}"#,
            r#"{"line":1,"error":"e","input_base64":"!"}"#,
        ] {
            assert_eq!(input_of(line.as_bytes()).expect_err(line).code(), "malformed_input");
        }
    }
}
