//! Splits the text of an input into records: one per line, the elements of a JSON array, or the rows of a CSV file.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use csv::ByteRecord;

use crate::compression;
use crate::failure::Failure;
use crate::input::{BUFFER, Mark, Out, Place, Stop};

/// Longer records are refused, to limit the memory. The largest event, all of it in Base64, is smaller.
pub(crate) const MAX_RECORD: usize = 32 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The possible delimiters of a CSV file. Of equally frequent ones, the first is used.
const DELIMITERS: [u8; 4] = *b",;\t|";

pub(crate) type Source = BufReader<Box<dyn Read + Send>>;

/// The accepted formats of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// JSON lines. Each line is passed on as soon as it is there.
    Lines,
    /// JSON in any form.
    Json,
    /// CSV with column titles.
    Csv,
    /// Any format, detected by its beginning.
    Any {
        /// Whether the user maps the columns of a CSV file.
        is_mapped: bool,
    },
}

/// Passes the records of a source to `out`.
pub(crate) fn read(mut source: Source, wanted: Wanted, out: &mut Out<'_>) -> Result<(), Stop> {
    if wanted == Wanted::Lines {
        return lines(&mut source, out);
    }
    let head = first_text(&mut source, out)?;
    if let Some(what) = compression::recognize_archive(&head) {
        return Err(out.stop_at_next(what));
    }
    let is_values = match head.first() {
        Some(b'[') => true,
        // The beginning of an object that was printed over several lines. No event is a line like this.
        Some(b'{') => first_line(&head).trim_ascii() == b"{",
        _ => false,
    };
    let is_json = matches!(head.first(), Some(b'[' | b'{'));
    let delimiter = delimiter(&head);
    let is_csv = match wanted {
        Wanted::Csv => true,
        Wanted::Any { .. } if head.first() == Some(&b'<') => {
            let reason = "this looks like XML or HTML, which is not supported; export the events as JSON lines";
            return Err(out.stop_at_next(reason));
        }
        Wanted::Any { is_mapped } if !is_json && delimiter.is_some() => match is_mapped {
            true => true,
            false => return Err(out.stop_at_next(describe_csv(&head))),
        },
        _ => false,
    };
    let capacity = head.len().max(BUFFER);
    let mut source: Source = BufReader::with_capacity(capacity, Box::new(io::Cursor::new(head).chain(source)));
    match (is_csv, is_values) {
        (true, _) => rows(source, delimiter.unwrap_or(DELIMITERS[0]), out),
        (_, true) => values(&mut source, out),
        (_, false) => lines(&mut source, out),
    }
}

/// Reads up to the first significant byte, and then to the end of its line or of the buffer.
fn first_text(source: &mut Source, out: &mut Out<'_>) -> Result<Vec<u8>, Stop> {
    let mut head = Vec::new();
    let mut may_have_mark = true;
    while !head.contains(&b'\n') && head.len() < BUFFER {
        let buffer = source.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        head.extend_from_slice(buffer);
        let len = buffer.len();
        source.consume(len);
        if may_have_mark {
            if head.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(&head) {
                continue;
            }
            may_have_mark = false;
            if head.starts_with(BYTE_ORDER_MARK) {
                head.drain(..BYTE_ORDER_MARK.len());
            }
        }
        let space = head.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(head.len());
        out.line += head.drain(..space).filter(|byte| *byte == b'\n').count() as u64;
    }
    Ok(head)
}

/// The first line, or the existing part of it.
fn first_line(head: &[u8]) -> &[u8] {
    head.split(|&byte| byte == b'\n').next().unwrap_or(head)
}

/// The delimiter of the column titles in a CSV file that begins like this; `None` if there is none.
fn delimiter(head: &[u8]) -> Option<u8> {
    let line = first_line(head);
    let mut counts = [0_usize; DELIMITERS.len()];
    let mut is_quoted = false;
    for byte in line {
        is_quoted ^= *byte == b'"';
        if !is_quoted && let Some(index) = DELIMITERS.iter().position(|delimiter| delimiter == byte) {
            counts[index] += 1;
        }
    }
    let most = *counts.iter().max()?;
    let index = counts.iter().position(|&count| count == most && count > 0)?;
    Some(DELIMITERS[index])
}

fn describe_csv(head: &[u8]) -> String {
    let row = String::from_utf8_lossy(first_line(head));
    let titles: Vec<_> = row
        .trim()
        .split(|character| DELIMITERS.map(char::from).contains(&character))
        .map(|title| title.trim().trim_matches('"'))
        .collect();
    format!(
        "not a JSON object; this looks like CSV with the columns {}: say what they are, with --map",
        titles.join(", ")
    )
}

/// One record per line. Lines are sent on as soon as more input would have to be waited for: a typed line at once,
/// those of a file together.
fn lines(source: &mut Source, out: &mut Out<'_>) -> Result<(), Stop> {
    loop {
        let start = out.chunk.bytes.len();
        let read = source.by_ref().take(MAX_RECORD as u64 + 1).read_until(b'\n', &mut out.chunk.bytes)?;
        if read == 0 {
            return Ok(());
        }
        if read > MAX_RECORD {
            out.chunk.bytes.truncate(start);
            return Err(Stop::TooLong);
        }
        out.line += 1;
        let is_cut = out.chunk.bytes.pop_if(|last| *last == b'\n').is_none();
        out.end(Mark { is_cut, ..Mark::at(Place { line: out.line, element: None }) });
        if !source.buffer().contains(&b'\n') || out.is_full() {
            out.send()?;
        }
    }
}

/// The elements of arrays, and concatenated objects, over any number of lines.
fn values(source: &mut Source, out: &mut Out<'_>) -> Result<(), Stop> {
    let mut splitter = Splitter { line: out.line + 1, ..Splitter::default() };
    loop {
        let buffer = source.fill_buf()?;
        let len = buffer.len();
        if len == 0 {
            return splitter.finish();
        }
        for &byte in buffer {
            splitter.take(byte, out)?;
        }
        // Also for messages about where reading ended.
        out.line = splitter.line - 1;
        source.consume(len);
        out.send()?;
    }
}

/// Splits JSON without parsing its values: it only has to find their ends. A value becomes one line: a line break in
/// it, with the following indentation, is removed, or becomes a space if tokens could otherwise merge.
#[derive(Debug, Default)]
struct Splitter {
    state: State,
    /// The current line, counted from 1.
    line: u64,
    elements: u64,
    is_in_array: bool,
    /// Of the current value: its place, its length so far, and the brackets to close.
    place: Option<Place>,
    len: usize,
    brackets: Vec<u8>,
    is_in_text: bool,
    is_escaped: bool,
    /// Whether a line break was read with nothing after it yet.
    is_broken: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before an array or an object.
    #[default]
    Between,
    /// After the `[` of an array.
    Opened,
    /// After an element.
    Behind,
    /// After a comma.
    Comma,
    /// Inside a value.
    Inside,
}

impl Splitter {
    fn take(&mut self, byte: u8, out: &mut Out<'_>) -> Result<(), Stop> {
        if byte == b'\n' {
            self.line += 1;
        }
        if self.is_in_text {
            return self.text(byte, out);
        }
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match (self.state, byte) {
            (State::Inside, _) if is_space && self.brackets.is_empty() => self.end(out),
            (State::Inside, b'\n' | b'\r') => self.is_broken = true,
            (State::Inside, b' ' | b'\t') if self.is_broken => {}
            (State::Inside, b',' | b']') if self.brackets.is_empty() => {
                self.end(out);
                self.take(byte, out)?;
            }
            (State::Inside, _) => self.inside(byte, out)?,
            (_, _) if is_space => {}
            (State::Between, b'[') => (self.state, self.is_in_array) = (State::Opened, true),
            (State::Between, b'{') | (State::Opened | State::Comma, _) if !matches!(byte, b',' | b']') => {
                self.elements += 1;
                self.place = Some(Place { line: self.line, element: Some(self.elements) });
                self.len = 0;
                self.state = State::Inside;
                self.inside(byte, out)?;
            }
            (State::Opened | State::Behind, b']') => (self.state, self.is_in_array) = (State::Between, false),
            (State::Behind, b',') => self.state = State::Comma,
            (State::Between, _) => return Err(self.stop("an array or an object is expected")),
            (State::Behind, _) => return Err(self.stop("a comma or ] is expected behind an element")),
            _ => return Err(self.stop("an element is missing")),
        }
        Ok(())
    }

    fn inside(&mut self, byte: u8, out: &mut Out<'_>) -> Result<(), Stop> {
        let bytes = &mut out.chunk.bytes;
        if std::mem::take(&mut self.is_broken) {
            let is_apart = |byte: &u8| b"{}[],: \t".contains(byte);
            if !is_apart(&byte) && !bytes.last().is_some_and(is_apart) {
                bytes.push(b' ');
            }
        }
        bytes.push(byte);
        self.grow()?;
        match byte {
            b'"' => self.is_in_text = true,
            b'{' => self.brackets.push(b'}'),
            b'[' => self.brackets.push(b']'),
            b'}' | b']' => match self.brackets.pop() {
                Some(expected) if expected == byte => {
                    if self.brackets.is_empty() {
                        self.end(out);
                    }
                }
                _ => return Err(self.stop(&format!("a {} does not belong here", char::from(byte)))),
            },
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, byte: u8, out: &mut Out<'_>) -> Result<(), Stop> {
        out.chunk.bytes.push(byte);
        self.grow()?;
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => self.is_in_text = false,
            // Only a missing quote can cause this.
            b'\n' => {
                self.line -= 1;
                return Err(self.stop("the line ends in a text; a quote is missing"));
            }
            _ => {}
        }
        Ok(())
    }

    fn grow(&mut self) -> Result<(), Stop> {
        self.len += 1;
        if self.len > MAX_RECORD { Err(Stop::TooLong) } else { Ok(()) }
    }

    fn end(&mut self, out: &mut Out<'_>) {
        if let Some(place) = self.place.take() {
            out.end(Mark::at(place));
        }
        self.is_broken = false;
        self.state = if self.is_in_array { State::Behind } else { State::Between };
    }

    fn finish(&self) -> Result<(), Stop> {
        match self.state {
            State::Between => Ok(()),
            State::Inside => Err(self.stop("the input ends in the middle of an element")),
            _ => Err(self.stop("the input ends in the middle of an array")),
        }
    }

    /// Nothing after this can be interpreted.
    fn stop(&self, reason: &str) -> Stop {
        let place = self.place.unwrap_or(Place { line: self.line, element: None });
        match self.place {
            Some(_) if place.line != self.line => Failure::malformed(format!("{reason} (line {})", self.line)),
            _ => Failure::malformed(reason),
        }
        .at(place)
        .into()
    }
}

/// The rows of a CSV file, as JSON objects of texts.
fn rows(source: Source, delimiter: u8, out: &mut Out<'_>) -> Result<(), Stop> {
    let before = out.line;
    let source = Limited { source, left: MAX_RECORD };
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(delimiter).from_reader(source);
    let mut row = ByteRecord::new();
    let mut titles = None;
    let mut last = before;
    loop {
        reader.get_mut().left = MAX_RECORD;
        let is_there = reader.read_byte_record(&mut row).map_err(io_error)?;
        if !is_there {
            return Ok(());
        }
        let line = before + row.position().map_or(1, csv::Position::line);
        // Empty lines before a row belong to it. A single carriage return also ends a row, but does not count as a
        // line.
        let place = Place { line: line.max(last + 1), element: None };
        last = place.line;
        let Some(titles) = &titles else {
            titles = Some(Titles::of(&row).map_err(|reason| Failure::malformed(reason).at(place))?);
            continue;
        };
        let problem = titles.write(&row, &mut out.chunk.bytes)?;
        out.end(Mark { problem, ..Mark::at(place) });
        out.line = before + reader.position().line() - 1;
        if out.is_full() {
            out.send()?;
        }
    }
}

/// Rows may have any length and any bytes: only reading can fail.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        kind => io::Error::other(format!("{kind:?}")),
    }
}

/// The names of the columns.
struct Titles(Vec<String>);

impl Titles {
    fn of(row: &ByteRecord) -> Result<Self, String> {
        let mut titles = Vec::with_capacity(row.len());
        for (index, field) in row.iter().enumerate() {
            let title = std::str::from_utf8(field)
                .map_err(|_| format!("the title of column {} is not UTF-8; convert the file", index + 1))?;
            let title = if title.trim().is_empty() { untitled(index) } else { title.trim().to_owned() };
            if titles.contains(&title) {
                return Err(format!("two columns have the title {title:?}; give each its own"));
            }
            titles.push(title);
        }
        Ok(Titles(titles))
    }

    /// Writes a row as a JSON object, and returns what is wrong with it. Invalid UTF-8 is written unchanged.
    fn write(&self, row: &ByteRecord, out: &mut Vec<u8>) -> io::Result<Option<Box<str>>> {
        let fields: Result<Vec<_>, _> = row.iter().map(std::str::from_utf8).collect();
        let Ok(fields) = fields else {
            for (index, field) in row.iter().enumerate() {
                out.extend_from_slice(if index == 0 { b"" } else { b"," });
                out.extend_from_slice(field);
            }
            return Ok(Some("it is not UTF-8".into()));
        };
        for (index, field) in fields.iter().enumerate() {
            out.push(if index == 0 { b'{' } else { b',' });
            match self.0.get(index) {
                Some(title) => serde_json::to_writer(&mut *out, title)?,
                None => serde_json::to_writer(&mut *out, &untitled(index))?,
            }
            out.push(b':');
            serde_json::to_writer(&mut *out, field)?;
        }
        out.push(b'}');
        let (there, wanted) = (fields.len(), self.0.len());
        Ok((there != wanted).then(|| format!("columns: {there}, and titles: {wanted}").into()))
    }
}

fn untitled(index: usize) -> String {
    format!("column {}", index + 1)
}

/// Fails before a record fills the memory.
struct Limited {
    source: Source,
    left: usize,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let read = self.source.read(buffer)?;
        self.left = self.left.saturating_sub(read);
        Ok(read)
    }
}
