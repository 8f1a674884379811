//! Tables for people, and tables of events.

use std::io::{self, Write};

use eventstore::backend::RecordedEvent;
use unicode_width::UnicodeWidthStr;

use crate::failure::escape_controls;
use crate::json::rfc3339;

const TITLES: [&str; COLUMNS] = ["VERSION", "REVISION", "RECORDED_AT", "TYPE", "AGGREGATE_ID", "ID", "DATA"];
const COLUMNS: usize = 7;
/// The number of right-aligned columns.
const NUMBERS: usize = 2;
/// A longer cell disturbs the alignment of its row, but is shown completely: ids must be copyable.
const MAX_WIDTH: usize = 40;
/// Data is shown only for recognition and is cut off.
const MAX_DATA: usize = 60;

/// Columns of cells as shown in a terminal, as wide as the content fitted so far.
#[derive(Debug)]
pub(crate) struct Columns {
    widths: Vec<usize>,
    /// Whether the cells are right-aligned.
    are_right: Vec<bool>,
}

impl Columns {
    pub(crate) fn new(columns: usize, is_right: impl Fn(usize) -> bool) -> Self {
        Columns { widths: vec![0; columns], are_right: (0..columns).map(is_right).collect() }
    }

    /// Widens the columns to fit these cells, but not beyond `limit`.
    pub(crate) fn fit(&mut self, cells: &[String], limit: usize) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.width().min(limit));
        }
    }

    /// Writes one row, without the line break.
    pub(crate) fn write(&self, out: &mut Vec<u8>, cells: &[String]) -> io::Result<()> {
        for (index, ((cell, &width), is_right)) in cells.iter().zip(&self.widths).zip(&self.are_right).enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            // Formatting would count characters: some take two columns of a terminal, some none.
            let fill = " ".repeat(width.saturating_sub(cell.width()));
            match is_right {
                true => write!(out, "{gap}{fill}{cell}")?,
                // Nothing follows the last one.
                false if index + 1 == cells.len() => write!(out, "{gap}{cell}")?,
                false => write!(out, "{gap}{cell}{fill}")?,
            }
        }
        Ok(())
    }
}

/// Events in columns. The columns grow with the content, since the rows are not known in advance.
#[derive(Debug)]
pub(crate) struct Table(Columns);

impl Table {
    pub(crate) fn new() -> Self {
        let mut columns = Columns::new(COLUMNS, |column| column < NUMBERS);
        columns.fit(&TITLES.map(str::to_owned), MAX_WIDTH);
        Table(columns)
    }

    /// Widens the columns to fit these events.
    pub(crate) fn fit(&mut self, events: &[RecordedEvent]) {
        events.iter().for_each(|recorded| self.0.fit(&cells(recorded), MAX_WIDTH));
    }

    pub(crate) fn write_titles(&self, out: &mut Vec<u8>) -> io::Result<()> {
        self.0.write(out, &TITLES.map(str::to_owned))
    }

    /// Writes an event as one row, without the line break.
    pub(crate) fn write(&self, out: &mut Vec<u8>, recorded: &RecordedEvent) -> io::Result<()> {
        self.0.write(out, &cells(recorded))
    }
}

fn cells(recorded: &RecordedEvent) -> [String; COLUMNS] {
    let event = &recorded.event;
    [
        recorded.version.to_string(),
        recorded.revision.get().to_string(),
        rfc3339(recorded.recorded_at).to_string(),
        escape_controls(event.event_type()),
        escape_controls(event.aggregate_id()),
        escape_controls(event.id()),
        shortened(event.data()),
    ]
}

/// As much of the data as fits, or its size if it is not text.
fn shortened(data: &[u8]) -> String {
    // Longer than this many characters that each take a column; the rest does not matter.
    let start = &data[..data.len().min(MAX_DATA * 4 + 4)];
    let is_cut = start.len() < data.len();
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // Text that is cut inside a character is still text.
        Err(error) if error.error_len().is_none() && is_cut => {
            std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return format!("({} bytes)", data.len()),
    };
    let escaped = escape_controls(text);
    if !is_cut && escaped.width() <= MAX_DATA {
        return escaped;
    }
    let mut shown = String::new();
    for character in escaped.chars() {
        shown.push(character);
        if shown.width() >= MAX_DATA {
            shown.pop();
            break;
        }
    }
    shown.push('…');
    shown
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use eventstore::backend::{Event, Revision, Version};

    use super::*;

    #[test]
    fn data_is_shortened_and_escaped() {
        assert_eq!(shortened(b""), "");
        assert_eq!(shortened(b"a\n\x1b[2J"), "a\\n\\u{1b}[2J");
        assert_eq!(shortened(b"\xff\xfe"), "(2 bytes)");
        assert_eq!(shortened("é".repeat(60).as_bytes()), "é".repeat(60));
        for character in ["é", "🦀", "ß"] {
            let text = shortened(format!("x{}", character.repeat(500)).as_bytes());
            assert!((MAX_DATA - 1..=MAX_DATA).contains(&text.width()), "{text}");
            assert!(text.ends_with('…'));
        }
        // Combining marks take no column of their own and must not be separated from their letter.
        let marked = "e\u{301}".repeat(500);
        let text = shortened(marked.as_bytes());
        assert!(text.width() == MAX_DATA && text.ends_with("e\u{301}…"), "{text}");
        let piled = format!("e{}", "\u{301}".repeat(500));
        assert!(shortened(piled.as_bytes()).ends_with('…'), "there is more than is shown");
    }

    #[test]
    fn columns_are_as_wide_as_a_terminal_shows_them() {
        let mut columns = Columns::new(2, |_| false);
        let rows = ["漢字", "e\u{301}e\u{301}e\u{301}", "abcd"].map(|cell| [cell.to_owned(), "end".to_owned()]);
        rows.iter().for_each(|row| columns.fit(row, MAX_WIDTH));
        let written = rows.each_ref().map(|row| {
            let mut out = Vec::new();
            columns.write(&mut out, row).expect("in memory");
            String::from_utf8(out).expect("UTF-8")
        });
        assert_eq!(written, ["漢字  end", "e\u{301}e\u{301}e\u{301}   end", "abcd  end"]);
    }

    #[test]
    fn columns_are_aligned() {
        let event = |id: &str| Event::builder("OrderPlaced", "order-7").id(id).data("{}").build().expect("valid");
        let recorded = |version, id| {
            RecordedEvent::new(Version::new(version), Revision::new(1), SystemTime::UNIX_EPOCH, event(id))
        };
        let events = [recorded(9, "a"), recorded(10, "bcd")];
        let mut table = Table::new();
        table.fit(&events);
        let row = |write: &dyn Fn(&mut Vec<u8>) -> io::Result<()>| {
            let mut out = Vec::new();
            write(&mut out).expect("in memory");
            String::from_utf8(out).expect("UTF-8")
        };
        let rows = [
            row(&|out| table.write_titles(out)),
            row(&|out| table.write(out, &events[0])),
            row(&|out| table.write(out, &events[1])),
        ];
        assert_eq!(
            rows,
            [
                "VERSION  REVISION  RECORDED_AT                  TYPE         AGGREGATE_ID  ID   DATA",
                "      9         1  1970-01-01T00:00:00.000000Z  OrderPlaced  order-7       a    {}",
                "     10         1  1970-01-01T00:00:00.000000Z  OrderPlaced  order-7       bcd  {}",
            ]
        );
    }
}
