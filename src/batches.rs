//! Gathers events from lines into batches.

use std::fmt::{self, Display};
use std::time::SystemTime;

use eventstore::backend::{Batch, Context, Error, Event, EventStore};

use crate::failure::Failure;
use crate::input::{Line, Lines, Place};
use crate::mapping::{self, Mapping, Number, Record};
use crate::{json, rejects};

/// An event, its place in the input, and how to store it.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) place: Place,
    pub(crate) event: Event,
    /// The recording time to store; `None` for that of the append.
    pub(crate) recorded_at: Option<SystemTime>,
    /// Whether the input has a recording time that is not stored.
    pub(crate) loses_time: bool,
    /// The version that the event must get in the store, if the input has one and it is to be checked.
    pub(crate) version: Option<u64>,
    pub(crate) revision: Option<u64>,
    /// The original line, if it may have to be written to the file of skipped lines.
    pub(crate) input: Option<Box<[u8]>>,
}

/// Events that are appended together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) items: Vec<Item>,
    /// Lines between them that are not valid events.
    pub(crate) rejected: Vec<Rejected>,
    bytes: usize,
}

/// A line that is skipped, and why.
#[derive(Clone, Debug)]
pub(crate) struct Rejected {
    pub(crate) place: Place,
    pub(crate) reason: String,
    pub(crate) input: Box<[u8]>,
}

impl Gathered {
    /// The batch to append.
    pub(crate) fn batch(&self) -> Batch {
        batch_of(&self.items)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.rejected.is_empty()
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.event.len_bytes();
        self.items.push(item);
    }

    fn reject(&mut self, rejected: Rejected) {
        self.bytes += rejected.input.len();
        self.rejected.push(rejected);
    }

    fn fills(&self, size: BatchSize) -> bool {
        self.items.len() + self.rejected.len() >= size.events || self.bytes >= size.bytes
    }
}

/// A batch of these events. If any event has a recording time, all get one: events without one get the current time.
pub(crate) fn batch_of(items: &[Item]) -> Batch {
    let batch = Batch::new(items.iter().map(|item| item.event.clone()).collect());
    if items.iter().all(|item| item.recorded_at.is_none()) {
        return batch;
    }
    let now = SystemTime::now();
    batch.recorded_at(items.iter().map(|item| item.recorded_at.unwrap_or(now)).collect())
}

/// The indexes of the events that caused a refused append; empty if the cause is not a single event.
pub(crate) async fn culprits(store: &impl EventStore, items: &[Item], error: &Error) -> Vec<usize> {
    let Error::DuplicateEvent { id, .. } = error else { return Vec::new() };
    let with_id = || items.iter().enumerate().filter(|(_, item)| item.event.id() == id);
    // The first event with an id is valid, in the store or in the batch. Later ones may repeat it.
    let first = match store.get(&Context::background(), id).await {
        Ok(recorded) => Some(recorded.event),
        Err(_) => with_id().next().map(|(_, item)| item.event.clone()),
    };
    with_id().filter(|(_, item)| Some(&item.event) != first.as_ref()).map(|(index, _)| index).collect()
}

/// The failure of a refused append, with the lines of the events that caused it, or otherwise all lines of the batch.
pub(crate) async fn refused(store: &impl EventStore, items: &[Item], error: Error) -> Failure {
    let place = |index: usize| items.get(index).map(|item| item.place);
    let culprit = culprits(store, items, &error).await.first().copied();
    let (first, last) = match culprit {
        Some(index) => (place(index), place(index)),
        None => (place(0), items.last().map(|item| item.place)),
    };
    match (first, last) {
        (Some(first), Some(last)) => Failure::from(error).at(Places { first, last }),
        _ => Failure::from(error),
    }
}

/// The places of a batch, for messages.
struct Places {
    first: Place,
    last: Place,
}

impl Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Places { first, last } if first == last => write!(f, "{first}"),
            Places { first, last } if first.element.is_none() && last.element.is_none() => {
                write!(f, "lines {} to {}", first.line, last.line)
            }
            Places { first, last } => write!(f, "{first} to {last}"),
        }
    }
}

/// The limits of a batch. It ends with the event that reaches one of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSize {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// How lines are interpreted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Form {
    /// The mapping of fields; `None` for lines as `load` prints them.
    pub(crate) mapping: Option<Mapping>,
    pub(crate) times: Times,
    /// Whether versions and revisions in the lines are used.
    pub(crate) reads_places: bool,
    /// Whether a line that is not a valid event is skipped, or ends the command.
    pub(crate) skips: bool,
    /// Whether the input is a file of skipped lines, which contains the original lines.
    pub(crate) from_rejects: bool,
    /// Whether an error about an invalid line says which format it seems to have.
    pub(crate) recognizes: bool,
}

/// What to do with the recording times in the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Times {
    /// Store them.
    Keep,
    /// Ignore them.
    #[default]
    Ignore,
}

/// Batches of the events in lines.
pub(crate) struct Batches {
    lines: Lines,
    size: BatchSize,
    form: Form,
    gathered: Gathered,
}

impl Batches {
    pub(crate) fn new(lines: Lines, size: BatchSize, form: Form) -> Self {
        Batches { lines, size, form, gathered: Gathered::default() }
    }

    /// The next batch, or `None` after the last one. Only the last may be smaller than it could be.
    /// After an error there are no more batches; only [`rest`](Batches::rest) is left.
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
            self.form.read(&line, &mut self.gathered)?;
            if self.gathered.fills(self.size) {
                return Ok(Some(self.rest()));
            }
        }
        Ok(Some(self.rest()).filter(|rest| !rest.is_empty()))
    }

    /// The events gathered for the next batch.
    pub(crate) fn rest(&mut self) -> Gathered {
        std::mem::take(&mut self.gathered)
    }
}

/// Why a line is skipped: the failure's code and its message.
pub(crate) fn reason(failure: &Failure) -> String {
    let told = failure.to_string();
    match told.split_once("]: ") {
        Some((_, message)) => format!("{}: {message}", failure.code()),
        None => told,
    }
}

impl Form {
    /// Adds the content of a line.
    fn read(&self, line: &Line<'_>, gathered: &mut Gathered) -> Result<(), Failure> {
        let (wrapped, problem) = match self.from_rejects.then(|| rejects::input_of(line.bytes)) {
            None => (None, None),
            Some(Ok(wrapped)) => (Some(wrapped), None),
            Some(Err(failure)) => (None, Some(failure)),
        };
        let (input, number) = match &wrapped {
            Some(wrapped) => (wrapped.input.as_slice(), wrapped.number),
            None => (line.bytes, line.place.element.unwrap_or(line.place.line)),
        };
        let number = Number { record: number, inner: None };
        let problem = problem.or_else(|| line.problem.map(Failure::malformed));
        let read = match (problem, &self.mapping) {
            (Some(problem), _) => Err(problem),
            (None, None) => self.unmapped(line.place, input).map(|item| gathered.push(item)),
            (None, Some(mapping)) => {
                let record = Record::parse(input, number);
                match record.and_then(|record| Ok((mapping.events_of(&record)?, record))) {
                    Err(failure) => Err(failure),
                    Ok((None, record)) => {
                        self.mapped(mapping, line.place, &record, input).map(|item| gathered.push(item))
                    }
                    Ok((Some(events), _)) => {
                        return self.read_each(mapping, line.place.line, number, &events, gathered);
                    }
                }
            }
        };
        match read {
            Ok(()) => Ok(()),
            Err(failure) if line.is_cut && failure.is_malformed() => {
                self.reject(line.place, failure.at("the input ends in the middle of a line"), input, gathered)
            }
            Err(failure) => self.reject(line.place, failure, input, gathered),
        }
    }

    /// Adds the events inside one record.
    fn read_each(
        &self,
        mapping: &Mapping,
        line: u64,
        number: Number,
        events: &[(u64, &str)],
        gathered: &mut Gathered,
    ) -> Result<(), Failure> {
        for &(element, text) in events {
            let place = Place { line, element: Some(element) };
            let record = Record::parse(text.as_bytes(), Number { inner: Some(element), ..number });
            match record.and_then(|record| self.mapped(mapping, place, &record, text.as_bytes())) {
                Ok(item) => gathered.push(item),
                Err(failure) => self.reject(place, failure, text.as_bytes(), gathered)?,
            }
        }
        Ok(())
    }

    /// Records an invalid line as skipped, or fails because of it.
    fn reject(&self, place: Place, failure: Failure, input: &[u8], gathered: &mut Gathered) -> Result<(), Failure> {
        let failure = match self.recognizes && self.mapping.is_none() {
            true => match mapping::recognize(input) {
                Some(what) => failure.note(what),
                None => failure,
            },
            false => failure,
        };
        if !self.skips {
            return Err(failure.at(place));
        }
        gathered.reject(Rejected { place, reason: reason(&failure), input: input.into() });
        Ok(())
    }

    fn unmapped(&self, place: Place, input: &[u8]) -> Result<Item, Failure> {
        let entry = json::parse(input)?;
        let recorded_at = match self.times {
            Times::Keep => entry.recorded_at()?,
            Times::Ignore => None,
        };
        let (version, revision) = match self.reads_places {
            true => (entry.version()?, entry.revision()?),
            false => (None, None),
        };
        Ok(Item {
            place,
            recorded_at,
            loses_time: self.times == Times::Ignore && entry.has_time(),
            version,
            revision,
            input: self.skips.then(|| input.into()),
            event: entry.event,
        })
    }

    fn mapped(&self, mapping: &Mapping, place: Place, record: &Record<'_>, input: &[u8]) -> Result<Item, Failure> {
        let event = mapping.event(record)?;
        let time = mapping.recorded_at(record);
        let (recorded_at, loses_time) = match self.times {
            Times::Keep => (time?.map(|text| json::time(&text)).transpose()?, false),
            Times::Ignore => (None, !matches!(time, Ok(None))),
        };
        let (version, revision) = match self.reads_places {
            true => mapping.place(record)?,
            false => (None, None),
        };
        let input = self.skips.then(|| input.into());
        Ok(Item { place, event, recorded_at, loses_time, version, revision, input })
    }
}
