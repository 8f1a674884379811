//! Records from a file or stdin, plain or compressed, read on a separate thread.
//!
//! Reading stdin can be neither awaited nor interrupted on every system: when the command ends, the thread is abandoned
//! in its read. The amount of data that it has read ahead is bounded.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use eventstore::backend::Error;
use tokio::sync::mpsc;

use crate::compression::{self, Content};
use crate::failure::Failure;
use crate::records::{self, MAX_RECORD, Wanted};

/// The number of bytes read and decompressed at a time; a chunk of records is about as large.
pub(crate) const BUFFER: usize = 128 << 10;
/// The number of chunks that may wait.
const CHUNKS: usize = 4;

/// The source of lines.
pub(crate) struct Input {
    name: String,
    source: Box<dyn Read + Send>,
    /// The size of the source in bytes, if known in advance.
    len: Option<u64>,
    /// The number of bytes of the source read so far.
    position: Arc<AtomicU64>,
}

impl Input {
    /// The file at this path, or stdin for `-`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let position = Arc::new(AtomicU64::new(0));
        if path == Path::new("-") {
            let source = Box::new(Counted { source: io::stdin(), position: position.clone() });
            return Ok(Input { name: "standard input".to_owned(), source, len: None, position });
        }
        let name = path.display().to_string();
        let cannot_read = |error| unreadable(&name, &error);
        let file = File::open(path).map_err(cannot_read)?;
        let metadata = file.metadata().map_err(cannot_read)?;
        if metadata.is_dir() {
            return Err(unreadable(&name, &ErrorKind::IsADirectory.into()));
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Input { name, source: Box::new(Counted { source: file, position: position.clone() }), len, position })
    }

    /// An input that reads from `source`.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn from_reader(source: impl Read + Send + 'static) -> Self {
        Input { name: "test".to_owned(), source: Box::new(source), len: None, position: Arc::default() }
    }

    /// The size of the source in bytes, if it is a file.
    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    /// The number of bytes of the source read so far.
    pub(crate) fn position(&self) -> Arc<AtomicU64> {
        self.position.clone()
    }

    /// Starts reading.
    pub(crate) fn into_records(self, wanted: Wanted) -> Result<Lines, Failure> {
        let (sender, messages) = mpsc::channel(CHUNKS);
        let Input { name, source, .. } = self;
        let reader_name = name.clone();
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || read(&reader_name, source, wanted, &sender))
            .map_err(|error| Failure::io("start a thread to read the input", &error))?;
        Ok(Lines { name, messages, current: Chunk::default(), taken: 0, is_over: false })
    }
}

/// Records as they are read.
pub(crate) struct Lines {
    name: String,
    messages: mpsc::Receiver<Message>,
    current: Chunk,
    /// The number of records taken from the current chunk.
    taken: usize,
    is_over: bool,
}

/// A message from the reading thread.
enum Message {
    Chunk(Chunk),
    /// There are no more records.
    Ended(Result<(), Failure>),
}

/// A place in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The line in which it begins, counted from 1.
    pub(crate) line: u64,
    /// The index in an array, counted from 1, if the input is not one event per line.
    pub(crate) element: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.element {
            None => write!(f, "line {}", self.line),
            Some(element) => write!(f, "line {}, element {element}", self.line),
        }
    }
}

/// One record: a line without its line break, or an equivalent.
pub(crate) struct Line<'a> {
    pub(crate) place: Place,
    pub(crate) bytes: &'a [u8],
    /// Whether the input ended in the middle of the line.
    pub(crate) is_cut: bool,
    /// What is wrong with it, if that was noticed while the input was split.
    pub(crate) problem: Option<&'a str>,
}

impl Lines {
    /// The next record, or `None` after the last one.
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<Line<'_>, Failure>> {
        while self.taken == self.current.records.len() {
            if self.is_over {
                return None;
            }
            let message = self.messages.recv().await;
            self.is_over = !matches!(message, Some(Message::Chunk(_)));
            match message {
                Some(Message::Chunk(chunk)) => (self.current, self.taken) = (chunk, 0),
                Some(Message::Ended(Ok(()))) => {}
                Some(Message::Ended(Err(failure))) => return Some(Err(failure)),
                // What it has read so far must not be mistaken for everything.
                None => return Some(Err(unreadable(&self.name, &io::Error::other("reading it ended with a panic")))),
            }
        }
        self.taken += 1;
        Some(Ok(self.current.line(self.taken - 1)))
    }
}

/// Consecutive records in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) bytes: Vec<u8>,
    records: Vec<Mark>,
}

/// The end of a record, and what is known about it.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) end: usize,
    pub(crate) place: Place,
    pub(crate) is_cut: bool,
    pub(crate) problem: Option<Box<str>>,
}

impl Mark {
    /// The mark of a valid record. Its end is set when it is added.
    pub(crate) fn at(place: Place) -> Self {
        Mark { end: 0, place, is_cut: false, problem: None }
    }
}

impl Chunk {
    fn line(&self, index: usize) -> Line<'_> {
        let start = if index == 0 { 0 } else { self.records[index - 1].end };
        let Mark { end, place, is_cut, problem } = &self.records[index];
        Line { place: *place, bytes: &self.bytes[start..*end], is_cut: *is_cut, problem: problem.as_deref() }
    }
}

/// Receives the records.
pub(crate) struct Out<'a> {
    /// Records that were not sent yet, followed by the bytes of the next one.
    pub(crate) chunk: Chunk,
    /// The number of lines read.
    pub(crate) line: u64,
    messages: &'a mpsc::Sender<Message>,
}

impl Out<'_> {
    /// Completes a record from the bytes added to the chunk after the last one.
    pub(crate) fn end(&mut self, mark: Mark) {
        self.chunk.records.push(Mark { end: self.chunk.bytes.len(), ..mark });
    }

    pub(crate) fn is_full(&self) -> bool {
        self.chunk.bytes.len() >= BUFFER
    }

    /// Sends the records. The bytes after them stay.
    pub(crate) fn send(&mut self) -> Result<(), Stop> {
        let Some(last) = self.chunk.records.last() else { return Ok(()) };
        let rest = Chunk { bytes: self.chunk.bytes.split_off(last.end), records: Vec::new() };
        let chunk = std::mem::replace(&mut self.chunk, rest);
        self.messages.blocking_send(Message::Chunk(chunk)).map_err(|_| Stop::Gone)
    }

    /// Nothing of the input can be read from the next line on.
    pub(crate) fn stop_at_next(&self, reason: impl Into<String>) -> Stop {
        Failure::malformed(reason).at(format_args!("line {}", self.line + 1)).into()
    }
}

/// Why reading stops before the end of the input.
pub(crate) enum Stop {
    Io(io::Error),
    TooLong,
    Failure(Failure),
    /// Nobody takes the records any more.
    Gone,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::FileTooLarge => Stop::TooLong,
            _ => Stop::Io(error),
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failure(failure)
    }
}

/// Reads until the end, an error, or until nobody takes the records any more.
fn read(name: &str, source: Box<dyn Read + Send>, wanted: Wanted, messages: &mpsc::Sender<Message>) {
    let mut out = Out { chunk: Chunk::default(), line: 0, messages };
    let ended = match compression::open(source) {
        Err(error) => Err(unreadable(name, &error)),
        Ok(Err(what)) => Err(Failure::malformed(format!("cannot read events from {name}: {what}"))),
        Ok(Ok(Content { source, is_compressed })) => {
            match records::read(BufReader::with_capacity(BUFFER, source), wanted, &mut out) {
                Ok(()) => Ok(()),
                Err(Stop::Gone) => return,
                Err(stop) => Err(told(name, stop, is_compressed, out.line + 1)),
            }
        }
    };
    // Records before an error are valid. Sending fails if nobody wants them.
    let _ = out.send().map(|()| out.messages.blocking_send(Message::Ended(ended)));
}

fn told(name: &str, stop: Stop, is_compressed: bool, line: u64) -> Failure {
    let failure = match stop {
        Stop::Failure(failure) => return failure,
        Stop::Io(error) if is_compressed && is_damage(&error) => {
            Failure::malformed(format!("the compressed data of {name} ends too early or is damaged: {error}"))
        }
        Stop::Io(error) => unreadable(name, &error),
        Stop::TooLong | Stop::Gone => {
            Error::invalid_event("data", format!("it is longer than {MAX_RECORD} bytes")).into()
        }
    };
    failure.at(format_args!("line {line}"))
}

/// Whether an error is about the compressed data, not about the file.
fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::io(format_args!("read {name}"), error).note("give a file that can be read, or - for standard input")
}

/// Counts the bytes read from a source, for the progress bar.
struct Counted<R> {
    source: R,
    position: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    async fn lines_of(source: impl Read + Send + 'static) -> (Vec<(u64, String, bool)>, Option<Failure>) {
        let (records, failure) = records_of(source, Wanted::Lines).await;
        assert!(records.iter().all(|(place, ..)| place.element.is_none()));
        (records.into_iter().map(|(place, text, is_cut)| (place.line, text, is_cut)).collect(), failure)
    }

    /// Each record with its place, and whether it is cut off or invalid.
    async fn records_of(
        source: impl Read + Send + 'static,
        wanted: Wanted,
    ) -> (Vec<(Place, String, bool)>, Option<Failure>) {
        let mut lines = Input::from_reader(source).into_records(wanted).expect("a thread");
        let mut all = Vec::new();
        loop {
            match lines.next().await {
                Some(Ok(line)) => {
                    let is_bad = line.is_cut || line.problem.is_some();
                    all.push((line.place, String::from_utf8_lossy(line.bytes).into_owned(), is_bad));
                }
                Some(Err(failure)) => {
                    assert!(lines.next().await.is_none(), "nothing comes behind a failure");
                    return (all, Some(failure));
                }
                None => return (all, None),
            }
        }
    }

    const ANY: Wanted = Wanted::Any { is_mapped: false };
    const MAPPED: Wanted = Wanted::Any { is_mapped: true };

    /// The records with their lines and elements, or the error. Checks that reading single bytes gives the same.
    async fn read(source: impl AsRef<[u8]>, wanted: Wanted) -> Result<Vec<(u64, u64, String)>, String> {
        let source = || Cursor::new(source.as_ref().to_vec());
        let (records, failure) = records_of(source(), wanted).await;
        let dripping = records_of(Dripping(source()), wanted).await;
        assert_eq!(dripping.0, records);
        assert_eq!(dripping.1.map(|failure| failure.to_string()), failure.as_ref().map(Failure::to_string));
        let text = |text, is_bad| if is_bad { format!("bad: {text}") } else { text };
        match failure {
            Some(failure) => Err(failure.message().to_owned()),
            None => Ok(records
                .into_iter()
                .map(|(place, record, is_bad)| (place.line, place.element.unwrap_or(0), text(record, is_bad)))
                .collect()),
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        let byte = |index: usize| u8::from_str_radix(&text[index..index + 2], 16).expect("a byte");
        (0..text.len()).step_by(2).map(byte).collect()
    }

    /// As written by the tools: `a`, and `b` and `c`, one per line.
    fn xz() -> [Vec<u8>; 2] {
        [
            hex("fd377a585a000004e6d6b4460200210116000000742fe5a3010001610a00000013473fb8939d45d400011a02dc2ea57e\
                 1fb6f37d010000000004595a"),
            hex("fd377a585a00000ae1fb0ca10200210116000000742fe5a3010003620a630a00bb9ead4c391dab4c05bd498dafac47a5\
                 4f8b212625f2124a911202cc6ea61d2700013404c582c19c189b4b9a01000000000a595a"),
        ]
    }

    fn bzip2() -> [Vec<u8>; 2] {
        [
            hex("425a6839314159265359633ed6e2000000c100001020002000210082b177245385090633ed6e20"),
            hex("425a68393141592653598eeb32a0000001410000101800200030cc0c7a8271772453850908eeb32a00"),
        ]
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 1).expect("in memory")
    }

    #[tokio::test]
    async fn lines_are_numbered_and_the_cut_one_is_known() {
        let (lines, failure) = lines_of(&b"a\n\nb\r\nc"[..]).await;
        let expected = [(1, "a", false), (2, "", false), (3, "b\r", false), (4, "c", true)];
        assert_eq!(lines, expected.map(|(number, text, is_cut)| (number, text.to_owned(), is_cut)));
        assert!(failure.is_none());
        assert!(lines_of(&b""[..]).await.0.is_empty());
    }

    #[tokio::test]
    async fn many_lines_keep_their_numbers() {
        let text: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
        for source in [text.clone().into_bytes(), gzip(text.as_bytes()), zstd(text.as_bytes())] {
            let (lines, failure) = lines_of(Cursor::new(source)).await;
            assert!(failure.is_none());
            assert_eq!(lines.len(), 100_000);
            assert!(lines.iter().all(|(number, text, _)| *text == number.to_string()));
        }
    }

    #[tokio::test]
    async fn compressed_parts_one_behind_the_other_are_one_input() {
        let parts = [[gzip(b"a\n"), gzip(b"b\nc\n")], [zstd(b"a\n"), zstd(b"b\nc\n")], xz(), bzip2()];
        for [first, second] in parts {
            let (lines, failure) = lines_of(Cursor::new([first, second].concat())).await;
            assert!(failure.is_none(), "{failure:?}");
            let texts: Vec<_> = lines.iter().map(|(_, text, _)| text.as_str()).collect();
            assert_eq!(texts, ["a", "b", "c"]);
        }
        // xz files may be padded with zeros.
        let [first, second] = xz();
        let (lines, failure) = lines_of(Cursor::new([first, vec![0; 8], second, vec![0; 4]].concat())).await;
        assert!(failure.is_none() && lines.len() == 3);
        for empty in
            ["425a683917724538509000000000", "fd377a585a000004e6d6b446000000001cdf44211fb6f37d010000000004595a"]
        {
            let (lines, failure) = lines_of(Cursor::new(hex(empty))).await;
            assert!(failure.is_none() && lines.is_empty());
        }
    }

    #[tokio::test]
    async fn compressed_data_that_is_cut_or_damaged_anywhere_is_told_with_its_name() {
        for [first, second] in [[gzip(b"a\n"), gzip(b"b\nc\n")], [zstd(b"a\n"), zstd(b"b\nc\n")], xz(), bzip2()] {
            let (whole, seam) = ([&first[..], &second].concat(), first.len());
            // After the bytes that identify the format.
            for cut in (10..whole.len()).filter(|&cut| cut != seam) {
                let (_, failure) = lines_of(Cursor::new(whole[..cut].to_vec())).await;
                let failure = failure.unwrap_or_else(|| panic!("cut to {cut} bytes"));
                assert_eq!(failure.code(), "malformed_input");
                assert!(failure.message().contains("the compressed data of test ends"), "{failure:?}");
            }
        }
        for [whole, _] in [xz(), bzip2()] {
            for at in 10..whole.len() {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x10;
                let (lines, failure) = lines_of(Cursor::new(damaged)).await;
                // The last bits of bzip2 data are unused.
                let is_unused = lines == [(1, "a".to_owned(), false)] && failure.is_none();
                assert!(failure.is_some() || is_unused, "byte {at}: {lines:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_text_is_named() {
        let mut tar = vec![b'x'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, words) in [
            (&b"PK\x03\x04\x14\0"[..], "a zip archive or an Excel workbook"),
            (b"PAR1\x15\x04\x15", "a Parquet file"),
            (b"Obj\x01\x04", "an Avro file"),
            (b"SQLite format 3\0\x10", "a SQLite database"),
            (b"\xff\xfe{\0", "text in UTF-16"),
            (&tar, "a tar archive"),
            (&gzip(&tar), "a tar archive"),
        ] {
            for wanted in [ANY, Wanted::Json, Wanted::Csv, Wanted::Lines] {
                // Typed lines are not held back until that many bytes have arrived.
                if wanted == Wanted::Lines && words == "a tar archive" {
                    continue;
                }
                let (records, failure) = records_of(Cursor::new(bytes.to_vec()), wanted).await;
                let failure = failure.expect("no text");
                assert!(records.is_empty() && failure.code() == "malformed_input");
                assert!(
                    failure.message().contains(words) && failure.message().contains("not supported"),
                    "{failure:?}"
                );
            }
        }
        // Text that begins similarly is text.
        for text in ["B", "BZh9,x\n", "PK,x\n", "PAR1,x", "SQLite format,x", "Obj"] {
            assert_eq!(lines_of(text.as_bytes()).await.0.len(), 1);
        }
    }

    #[tokio::test]
    async fn a_reader_that_panics_is_no_end_of_the_input() {
        struct Panics;
        impl Read for Panics {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("a fault of a decompressor")
            }
        }
        let (lines, failure) = lines_of(b"a\n".chain(Panics)).await;
        assert_eq!(failure.expect("a panic").code(), "io");
        assert!(lines.len() <= 1);
    }

    #[tokio::test]
    async fn a_cut_compressed_input_gives_its_lines_then_the_error() {
        let text: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
        for mut source in [gzip(text.as_bytes()), zstd(text.as_bytes())] {
            source.truncate(source.len() - 20);
            let (lines, failure) = lines_of(Cursor::new(source)).await;
            let failure = failure.expect("cut");
            assert_eq!(failure.code(), "malformed_input");
            assert!(failure.message().starts_with(&format!("line {}: ", lines.len() + 1)), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn endless_lines_are_refused_in_bounded_memory() {
        let (lines, failure) = lines_of(b"a\n".chain(io::repeat(b'x'))).await;
        let failure = failure.expect("too long");
        assert_eq!((lines.len(), failure.code()), (1, "invalid_event"));
        assert!(failure.message().starts_with("line 2: "), "{failure:?}");
    }

    /// Returns one byte at a time, as a terminal or a slow pipe may.
    struct Dripping(Cursor<Vec<u8>>);

    impl Read for Dripping {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let one = buffer.len().min(1);
            self.0.read(&mut buffer[..one])
        }
    }

    #[tokio::test]
    async fn compression_is_recognized_in_short_reads() {
        let [xz, _] = xz();
        let [bzip2, _] = bzip2();
        for source in [b"a\n".to_vec(), gzip(b"a\n"), zstd(b"a\n"), xz, bzip2] {
            let (lines, failure) = lines_of(Dripping(Cursor::new(source))).await;
            assert!(failure.is_none(), "{failure:?}");
            assert_eq!(lines, [(1, "a".to_owned(), false)]);
        }
    }

    fn records(expected: &[(u64, u64, &str)]) -> Result<Vec<(u64, u64, String)>, String> {
        Ok(expected.iter().map(|&(line, element, text)| (line, element, text.to_owned())).collect())
    }

    #[tokio::test]
    async fn json_is_recognized_in_whatever_shape_it_comes() {
        let lines = records(&[(1, 0, r#"{"a":1}"#), (2, 0, r#"{"b":2}"#)]);
        assert_eq!(read("{\"a\":1}\n{\"b\":2}\n", ANY).await, lines);
        assert_eq!(read("\u{feff}{\"a\":1}\n{\"b\":2}", Wanted::Json).await.map(|records| records.len()), Ok(2));
        let elements = [r#"{"a":1}"#, r#"{"b":[2,"]"]}"#];
        assert_eq!(read(r#"[{"a":1},{"b":[2,"]"]}]"#, ANY).await, records(&[(1, 1, elements[0]), (1, 2, elements[1])]));
        let printed = "\n [\r\n  {\"a\":1}\n,\n{\n\t\"b\":[\n2,\r\n   \"]\"\n]\n}\n]\n";
        assert_eq!(read(printed, ANY).await, records(&[(3, 1, elements[0]), (5, 2, elements[1])]));
        let values = "{\n  \"a\":1\n}\n{\n  \"b\":[2,\"]\"]\n}\n";
        assert_eq!(read(values, ANY).await, records(&[(1, 1, elements[0]), (4, 2, elements[1])]));
        // Concatenated arrays, as from several files.
        assert_eq!(read("[1, 2]\n[]\n[ \"x\" ,{} ]", ANY).await.map(|records| records.len()), Ok(4));
        for nothing in ["", "\n \n", "[]", " [ ] ", "[][]"] {
            assert_eq!(read(nothing, ANY).await, records(&[]));
        }
    }

    #[tokio::test]
    async fn a_value_of_several_lines_stays_what_it_was() {
        // Adjacent tokens stay separate, and the content of strings is unchanged.
        assert_eq!(
            read("[{\"a b\\n  c\" :\n 1,  \n \"x\\\"\":  true\n}]", ANY).await,
            records(&[(1, 1, r#"{"a b\n  c" :1,  "x\"":  true}"#)])
        );
        assert_eq!(read("[[1\n2],[\ntru\ne\n]]", ANY).await, records(&[(1, 1, "[1 2]"), (2, 2, "[tru e]")]));
    }

    #[tokio::test]
    async fn an_array_that_is_broken_says_where() {
        for (text, words) in [
            ("[", "line 1: the input ends in the middle of an array"),
            ("[{}\n", "line 2: the input ends in the middle of an array"),
            ("[{},", "line 1: the input ends in the middle of an array"),
            ("[{},\n{\"a\":\n1", "line 2, element 2: the input ends in the middle of an element (line 3)"),
            ("[{}{}]", "line 1: a comma or ] is expected behind an element"),
            ("[{},,{}]", "line 1: an element is missing"),
            ("[,{}]", "line 1: an element is missing"),
            ("[{},]", "line 1: an element is missing"),
            ("[{}]]", "line 1: an array or an object is expected"),
            ("[{}]\nx", "line 2: an array or an object is expected"),
            ("[{\"a\":[}]", "line 1, element 1: a } does not belong here"),
            ("[{\n\"a\":\"b\n}]", "line 1, element 1: the line ends in a text; a quote is missing (line 2)"),
        ] {
            assert_eq!(read(text, ANY).await, Err(words.to_owned()), "{text}");
        }
        let endless = b"[\"".chain(io::repeat(b'x'));
        assert_eq!(records_of(endless, ANY).await.1.expect("too long").code(), "invalid_event");
    }

    #[tokio::test]
    async fn rows_are_objects_of_texts() {
        let expected = records(&[
            (2, 0, r#"{"id":"1","the name":"a,\"b\"\nc","column 3":""}"#),
            (4, 0, r#"{"id":"2","the name":"ü","column 3":"x"}"#),
        ]);
        let text = "id, the name ,\n1,\"a,\"\"b\"\"\nc\",\n2,ü,x\n";
        assert_eq!(read(text, MAPPED).await, expected);
        assert_eq!(read(format!("\u{feff}{text}"), Wanted::Csv).await, expected);
        for delimiter in [";", "\t", "|"] {
            let text = text.replace(',', delimiter).replace(&format!("a{delimiter}\"\""), "a,\"\"");
            assert_eq!(read(text, MAPPED).await, expected);
        }
        assert_eq!(read("a,b", MAPPED).await, records(&[]));
        assert_eq!(read("a\n1\n", Wanted::Csv).await, records(&[(2, 0, r#"{"a":"1"}"#)]));
        // The user must map the columns; a line that is not JSON is not recognised as CSV.
        let told = read("id;when\n", ANY).await.expect_err("CSV");
        assert!(told.contains("looks like CSV with the columns id, when: ") && told.contains("--map"), "{told}");
        assert_eq!(read("hello\n", ANY).await, records(&[(1, 0, "hello")]));
        assert_eq!(read("a,b\n", Wanted::Json).await, records(&[(1, 0, "a,b")]));
        assert!(read("<a/>\n", ANY).await.expect_err("XML").contains("looks like XML"));
    }

    #[tokio::test]
    async fn rows_that_do_not_fit_the_titles_are_told_one_by_one() {
        let text = b"a,b\n1\n1,2\n1,2,3\n\xff,\n1,2\n";
        assert_eq!(
            read(text, MAPPED).await,
            records(&[
                (2, 0, r#"bad: {"a":"1"}"#),
                (3, 0, r#"{"a":"1","b":"2"}"#),
                (4, 0, r#"bad: {"a":"1","b":"2","column 3":"3"}"#),
                (5, 0, "bad: \u{fffd},"),
                (6, 0, r#"{"a":"1","b":"2"}"#),
            ])
        );
        // Each row has its own line, even without a line feed at its end, and begins with the empty lines before it.
        let expected = [(2, r#"{"a":"1"}"#), (3, r#"{"a":"2"}"#), (4, r#"{"a":"3"}"#), (5, r#"{"a":"4"}"#)];
        let found = read("a\r1\r2\r3\r\n\n\n\n4", Wanted::Csv).await.expect("rows");
        assert_eq!(found.iter().map(|(line, _, text)| (*line, text.as_str())).collect::<Vec<_>>(), expected);
        assert!(read("a,b,a\n", MAPPED).await.expect_err("twice").contains("line 1: two columns have the title \"a\""));
        assert!(read(b"a,\xff\n", MAPPED).await.expect_err("Latin-1").contains("column 2 is not UTF-8"));
        let endless = b"a,b\n\"".chain(io::repeat(b'x'));
        assert_eq!(records_of(endless, MAPPED).await.1.expect("too long").code(), "invalid_event");
    }

    #[tokio::test]
    async fn many_records_are_all_there() {
        let numbers = || 1..=30_000_u64;
        let array =
            format!("[{}]", numbers().map(|number| format!("{{\"n\":{number}}}")).collect::<Vec<_>>().join(",\n"));
        let rows: String = std::iter::once("n,m\n".to_owned()).chain(numbers().map(|n| format!("{n},\n"))).collect();
        for (text, offset, end) in [(array, 0, "}"), (rows, 1, ",\"m\":\"\"}")] {
            for source in [text.clone().into_bytes(), gzip(text.as_bytes())] {
                let (records, failure) = records_of(Cursor::new(source), MAPPED).await;
                assert!(failure.is_none() && records.len() == 30_000);
                for (number, (place, text, is_bad)) in numbers().zip(&records) {
                    assert!(place.line == number + offset && !is_bad);
                    assert_eq!(text.replace('"', ""), format!("{{n:{number}{}", end.replace('"', "")));
                }
            }
        }
    }
}
