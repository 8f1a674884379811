//! Events from lines, gathered into batches.

use std::fmt;

use eventstore::{Error, Event};

use crate::failure::Failure;
use crate::input::{Line, Lines};
use crate::json;

/// Events that are appended together, with the lines they came from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) events: Vec<Event>,
    lines: Vec<u64>,
    bytes: usize,
}

impl Gathered {
    /// The line that an error is about, or all of them.
    pub(crate) fn place_of(&self, error: &Error) -> Place {
        let (first, last) = (self.lines.first().copied().unwrap_or(0), self.lines.last().copied().unwrap_or(0));
        match error {
            Error::DuplicateEvent { id, .. } => match self.events.iter().rposition(|event| event.id() == id) {
                Some(index) => Place { first: self.lines[index], last: self.lines[index] },
                None => Place { first, last },
            },
            _ => Place { first, last },
        }
    }

    fn push(&mut self, number: u64, event: Event) {
        self.bytes += event.len_bytes();
        self.events.push(event);
        self.lines.push(number);
    }
}

/// The lines of a batch, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    first: u64,
    last: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place { first, last } if first == last => write!(f, "line {first}"),
            Place { first, last } => write!(f, "lines {first} to {last}"),
        }
    }
}

/// How much a batch may hold; it ends with the event that reaches one of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// Batches of the events in some lines.
pub(crate) struct Batches {
    lines: Lines,
    size: BatchSize,
    gathered: Gathered,
}

impl Batches {
    pub(crate) fn new(lines: Lines, size: BatchSize) -> Self {
        Batches { lines, size, gathered: Gathered::default() }
    }

    /// The next batch, or `None` after the last one. Only the last may be smaller than it could be.
    ///
    /// After an error there is nothing more to come but [`rest`](Batches::rest).
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Gathered>, Failure> {
        while let Some(line) = self.lines.next().await {
            let line = line?;
            if line.bytes.trim_ascii().is_empty() {
                continue;
            }
            self.gathered.push(line.number, parse(&line)?);
            if self.gathered.events.len() >= self.size.events || self.gathered.bytes >= self.size.bytes {
                return Ok(Some(self.rest()));
            }
        }
        Ok(Some(self.rest()).filter(|rest| !rest.events.is_empty()))
    }

    /// What was gathered for the next batch.
    pub(crate) fn rest(&mut self) -> Gathered {
        std::mem::take(&mut self.gathered)
    }
}

fn parse(line: &Line<'_>) -> Result<Event, Failure> {
    json::parse(line.bytes).map_err(|failure| {
        let failure = match line.is_cut && failure.is_malformed() {
            true => failure.at("the input ends in the middle of a line"),
            false => failure,
        };
        failure.at(format_args!("line {}", line.number))
    })
}
