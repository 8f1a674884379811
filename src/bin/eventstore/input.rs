//! Lines from a file or stdin, plain, gzip or zstd, read on a thread of their own.
//!
//! A thread, because reading stdin can neither be awaited nor interrupted on every system: when the command ends, the
//! thread is left behind in its read. What it has read and nobody took is bounded.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use eventstore::Error;
use flate2::read::MultiGzDecoder;
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Longer lines are refused before they fill the memory. The largest event, all of it in base64, needs less.
const MAX_LINE: usize = 32 << 20;
/// Read and decompressed at a time; a chunk of lines is about as large.
const BUFFER: usize = 128 << 10;
/// Chunks that may wait to be taken.
const CHUNKS: usize = 4;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Where lines come from.
pub(crate) struct Input {
    name: String,
    source: Box<dyn Read + Send>,
    /// Bytes of the source, as far as they are known before reading it.
    len: Option<u64>,
    /// Bytes of the source that were read.
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

    /// Whatever this one gives.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn from_reader(source: impl Read + Send + 'static) -> Self {
        Input { name: "test".to_owned(), source: Box::new(source), len: None, position: Arc::default() }
    }

    /// Bytes of the source, if it is a file.
    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    /// Bytes of the source that were read so far.
    pub(crate) fn position(&self) -> Arc<AtomicU64> {
        self.position.clone()
    }

    /// Starts to read.
    pub(crate) fn into_lines(self) -> Result<Lines, Failure> {
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let Input { name, source, .. } = self;
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || read(&name, source, &sender))
            .map_err(|error| Failure::io("start a thread to read the input", &error))?;
        Ok(Lines { chunks, current: Chunk::default(), taken: 0 })
    }
}

/// Lines as they are read.
pub(crate) struct Lines {
    chunks: mpsc::Receiver<Result<Chunk, Failure>>,
    current: Chunk,
    /// How many lines of the current chunk were taken.
    taken: usize,
}

/// Where something stands in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The line that it begins in, counted from 1.
    pub(crate) line: u64,
    /// Which element of an array it is, counted from 1, if the input is not one event a line.
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

/// One line, without its end.
pub(crate) struct Line<'a> {
    pub(crate) place: Place,
    pub(crate) bytes: &'a [u8],
    /// Whether the input ended before the line did.
    pub(crate) is_cut: bool,
}

impl Lines {
    /// The next line, or `None` after the last one.
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<Line<'_>, Failure>> {
        while self.taken == self.current.ends.len() {
            match self.chunks.recv().await? {
                Ok(chunk) => (self.current, self.taken) = (chunk, 0),
                Err(failure) => return Some(Err(failure)),
            }
        }
        self.taken += 1;
        Some(Ok(self.current.line(self.taken - 1)))
    }
}

/// Consecutive lines in one buffer.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Where each line ends in `bytes`, behind its line feed.
    ends: Vec<usize>,
    /// The number of the line before the first one.
    before: u64,
}

impl Chunk {
    fn line(&self, index: usize) -> Line<'_> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let bytes = &self.bytes[start..self.ends[index]];
        let place = Place { line: self.before + index as u64 + 1, element: None };
        match bytes.strip_suffix(b"\n") {
            Some(bytes) => Line { place, bytes, is_cut: false },
            None => Line { place, bytes, is_cut: true },
        }
    }

    /// The number of the newest line.
    fn last(&self) -> u64 {
        self.before + self.ends.len() as u64
    }

    fn following(&self) -> Chunk {
        Chunk { before: self.last(), ..Chunk::default() }
    }
}

type Chunks = mpsc::Sender<Result<Chunk, Failure>>;

/// Reads until the end, an error, or until nobody takes the lines any more.
fn read(name: &str, source: Box<dyn Read + Send>, chunks: &Chunks) {
    let mut chunk = Chunk::default();
    let failure = match decompressed(source) {
        Ok((source, is_compressed)) => read_lines(source, &mut chunk, chunks)
            .map_err(|error| interrupted_reading(name, &error, is_compressed, chunk.last() + 1)),
        Err(error) => Err(unreadable(name, &error)),
    };
    let rest = (!chunk.ends.is_empty()).then_some(Ok(chunk));
    for last in rest.into_iter().chain(failure.err().map(Err)) {
        if chunks.blocking_send(last).is_err() {
            return;
        }
    }
}

/// Reads lines into `chunk` and sends it on, whenever going on would mean to wait for input: a line that was typed goes
/// on at once, lines from a file go on together.
fn read_lines(source: Box<dyn Read + Send>, chunk: &mut Chunk, chunks: &Chunks) -> Result<(), ReadError> {
    let mut source = BufReader::with_capacity(BUFFER, source);
    loop {
        let start = chunk.bytes.len();
        let read = source.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut chunk.bytes)?;
        if read == 0 {
            return Ok(());
        }
        if read > MAX_LINE {
            chunk.bytes.truncate(start);
            return Err(ReadError::LineTooLong);
        }
        chunk.ends.push(chunk.bytes.len());
        if !source.buffer().contains(&b'\n') || chunk.bytes.len() >= BUFFER {
            let following = chunk.following();
            if chunks.blocking_send(Ok(std::mem::replace(chunk, following))).is_err() {
                return Ok(());
            }
        }
    }
}

enum ReadError {
    Io(io::Error),
    LineTooLong,
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Io(error)
    }
}

fn interrupted_reading(name: &str, error: &ReadError, is_compressed: bool, line: u64) -> Failure {
    let line = format!("line {line}");
    match error {
        ReadError::Io(error) if is_compressed && is_damage(error) => {
            Failure::malformed(format!("the compressed data ends too early or is damaged: {error}")).at(line)
        }
        ReadError::Io(error) => unreadable(name, error).at(line),
        ReadError::LineTooLong => {
            Failure::from(Error::invalid_event("data", format!("the line is longer than {MAX_LINE} bytes"))).at(line)
        }
    }
}

/// What decompressors say about their input, in contrast to what the system says about the file.
fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::io(format_args!("read {name}"), error).note("give a file that can be read, or - for standard input")
}

/// Recognizes compression by the first bytes, which no event can begin with. As long as they fit no compression, no
/// further byte is waited for.
fn decompressed(mut source: Box<dyn Read + Send>) -> io::Result<(Box<dyn Read + Send>, bool)> {
    let mut head = Vec::new();
    while [GZIP_MAGIC, ZSTD_MAGIC].iter().any(|magic| magic.len() > head.len() && magic.starts_with(&head)) {
        if source.by_ref().take(1).read_to_end(&mut head)? == 0 {
            break;
        }
    }
    let is = |magic| head == magic;
    let (is_gzip, is_zstd) = (is(GZIP_MAGIC), is(ZSTD_MAGIC));
    let source = Cursor::new(head).chain(source);
    Ok(match (is_gzip, is_zstd) {
        (true, _) => (Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, source))), true),
        (_, true) => (Box::new(zstd::Decoder::new(source)?), true),
        _ => (Box::new(source), false),
    })
}

/// Counts what is read from a source, for the progress bar.
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
    use std::io::Write;

    use super::*;

    async fn lines_of(source: impl Read + Send + 'static) -> (Vec<(u64, String, bool)>, Option<Failure>) {
        let mut lines = Input::from_reader(source).into_lines().expect("a thread");
        let mut all = Vec::new();
        loop {
            match lines.next().await {
                Some(Ok(line)) => {
                    all.push((line.place.line, String::from_utf8_lossy(line.bytes).into_owned(), line.is_cut));
                }
                Some(Err(failure)) => return (all, Some(failure)),
                None => return (all, None),
            }
        }
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
        let (lines, failure) = lines_of(Cursor::new([gzip(b"a\n"), gzip(b"b\n")].concat())).await;
        assert!(failure.is_none());
        assert_eq!(lines.len(), 2);
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

    /// Gives a byte at a time, as a terminal or a slow pipe may.
    struct Dripping(Cursor<Vec<u8>>);

    impl Read for Dripping {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let one = buffer.len().min(1);
            self.0.read(&mut buffer[..one])
        }
    }

    #[tokio::test]
    async fn compression_is_recognized_in_short_reads() {
        for source in [b"a\nb\n".to_vec(), gzip(b"a\nb\n"), zstd(b"a\nb\n")] {
            let (lines, failure) = lines_of(Dripping(Cursor::new(source))).await;
            assert!(failure.is_none(), "{failure:?}");
            assert_eq!(lines.len(), 2);
        }
    }
}
