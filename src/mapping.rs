//! Maps JSON of other programs to the fields of an event.
//!
//! A mapping is a list of `field=expression`, or the name of a known format. An expression is a path, a constant, a
//! function of them, several of them joined with `+`, or alternatives separated by `//`. Values are not parsed: what
//! becomes data or metadata is copied byte for byte.

mod expression;
mod parser;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use eventstore::backend::{Error, Event};

use crate::failure::Failure;
use crate::mapping::expression::{Expression, Value};
pub(crate) use crate::mapping::expression::{Number, Record};
use crate::mapping::parser::Parser;

/// Formats with a built-in mapping: a name, a title, and the mapping.
const FORMATS: &[(&str, &str, &str)] = &[
    (
        "cloudevents",
        "CloudEvents",
        // An id is unique only within its source. The source stays in the metadata, whatever the aggregate is.
        r##"id=.source+"#"+.id,type=.type,aggregate_id=.subject//.source+"",data=.data//base64(.data_base64),
            metadata=rest(),recorded_at=.time"##,
    ),
    (
        "kurrentdb",
        "an export of KurrentDB or EventStoreDB",
        // One event per record, or a page of an Atom feed, which has its newest event first.
        r#"each=reverse(.entries),id=.eventId//.content.eventId,type=.eventType//.content.eventType,
            aggregate_id=.streamId//.eventStreamId//.content.eventStreamId,data=json(.data//.content.data),
            metadata=json(.metadata//.metaData//.content.metadata),recorded_at=.created//.updated,
            revision=next(.eventNumber//.content.eventNumber)"#,
    ),
    (
        "gharchive",
        "GH Archive",
        "id=.id,type=.type,aggregate_id=.repo.name,data=.payload,metadata=rest(),recorded_at=.created_at",
    ),
];

/// A field of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Type,
    AggregateId,
    Data,
    Metadata,
    RecordedAt,
    Version,
    Revision,
}

impl Field {
    const ALL: [Field; 8] = [
        Field::Id,
        Field::Type,
        Field::AggregateId,
        Field::Data,
        Field::Metadata,
        Field::RecordedAt,
        Field::Version,
        Field::Revision,
    ];
    /// The content of an event.
    const CONTENT: [Field; 5] = [Field::Id, Field::Type, Field::AggregateId, Field::Data, Field::Metadata];

    fn name(self) -> &'static str {
        match self {
            Field::Id => "id",
            Field::Type => "type",
            Field::AggregateId => "aggregate_id",
            Field::Data => "data",
            Field::Metadata => "metadata",
            Field::RecordedAt => "recorded_at",
            Field::Version => "version",
            Field::Revision => "revision",
        }
    }

    fn is_text(self) -> bool {
        !matches!(self, Field::Data | Field::Metadata)
    }
}

/// The location of the events in a record, if the record is not itself an event.
#[derive(Clone, Debug)]
struct Each {
    array: Expression,
    is_reversed: bool,
}

/// The expressions for the fields of an event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mapping {
    each: Option<Each>,
    expressions: [Option<Expression>; Field::ALL.len()],
}

impl Mapping {
    /// The mapping that these texts describe together; later ones take precedence.
    ///
    /// # Errors
    ///
    /// `InvalidOption`, with the position in the text.
    pub(crate) fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, Error> {
        let refused = |reason| Error::InvalidOption { option: "map".to_owned(), reason };
        let mut mapping = Mapping::default();
        for text in texts {
            mapping.add(text.as_ref()).map_err(refused)?;
        }
        // Unmapped parts are kept.
        if mapping.of(Field::Data).is_none() {
            mapping.set(Field::Data, Expression::whole());
        }
        for field in [Field::Id, Field::Type, Field::AggregateId] {
            if mapping.of(field).is_none() {
                let name = field.name();
                return Err(refused(format!(
                    "it does not say what the {name} is; add {name}=…, such as {name}=.{name}"
                )));
            }
        }
        Ok(mapping)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let mut parser = Parser::new(text);
        loop {
            let name = parser.name()?;
            if !parser.eat("=") {
                let format = FORMATS.iter().find(|(format, ..)| *format == name);
                let Some((_, _, mapping)) = format else {
                    let names: Vec<_> = FORMATS.iter().map(|(name, ..)| *name).collect();
                    return Err(format!("{name:?} is none of {}, nor field=expression", names.join(", ")));
                };
                self.add(mapping)?;
            } else if name == "each" {
                let is_reversed = parser.eat("reverse(");
                let array = parser.path()?;
                if is_reversed {
                    parser.expect(")")?;
                }
                self.each = Some(Each { array, is_reversed });
            } else if let Some(field) = Field::ALL.into_iter().find(|field| field.name() == name) {
                let expression = parser.expression()?;
                if expression.has_rest() && (field.is_text() || !expression.is_rest()) {
                    return Err("rest() has to be all of data or of metadata".to_owned());
                }
                self.set(field, expression);
            } else {
                let names: Vec<_> = Field::ALL.iter().map(|field| field.name()).collect();
                return Err(format!("{name:?} is none of the fields {}, each", names.join(", ")));
            }
            if parser.is_at_end() {
                return Ok(());
            }
            parser.expect(",")?;
        }
    }

    fn of(&self, field: Field) -> Option<&Expression> {
        self.expressions[field as usize].as_ref()
    }

    fn set(&mut self, field: Field, expression: Expression) {
        self.expressions[field as usize] = Some(expression);
    }

    /// The texts of the events in a record, in order, each with its index in the record's array; `None` if the record
    /// is itself an event.
    pub(crate) fn events_of<'a>(&self, record: &Record<'a>) -> Result<Option<Vec<(u64, &'a str)>>, Failure> {
        let Some(each) = &self.each else { return Ok(None) };
        let found = each.array.evaluate(record, false).map_err(Failure::malformed)?;
        let Some(Value::Json(Cow::Borrowed(array))) = found.map(|found| found.value) else { return Ok(None) };
        let Some(elements) = expression::elements(array) else { return Ok(None) };
        let mut events: Vec<_> = (1..).zip(elements).collect();
        if each.is_reversed {
            events.reverse();
        }
        Ok(Some(events))
    }

    /// The event for a record.
    pub(crate) fn event(&self, record: &Record<'_>) -> Result<Event, Failure> {
        // The members of the record that some field takes unchanged.
        let mut taken = Vec::new();
        let mut found = [const { None }; Field::CONTENT.len()];
        for field in Field::CONTENT {
            let Some(expression) = self.of(field).filter(|expression| !expression.is_rest()) else { continue };
            let value = expression.evaluate(record, field.is_text()).map_err(|reason| invalid(field, reason))?;
            taken.extend(value.as_ref().and_then(|value| value.member));
            found[field as usize] = value.map(|value| value.value);
        }
        for field in [Field::Data, Field::Metadata] {
            if self.of(field).is_some_and(Expression::is_rest) {
                found[field as usize] = Some(Value::Json(record.without(&taken).into()));
            }
        }
        let [id, event_type, aggregate_id, data, metadata] = found;
        let text = |field: Field, value: Option<Value<'_>>| {
            let text = value.map(|value| value.text()).transpose().map_err(|reason| invalid(field, reason))?;
            text.flatten().ok_or_else(|| {
                let expression = self.of(field).map_or("", Expression::as_str);
                invalid(field, format!("{expression} is missing"))
            })
        };
        let id = text(Field::Id, id)?;
        let event = Event::builder(text(Field::Type, event_type)?, text(Field::AggregateId, aggregate_id)?).id(id);
        let event = match data {
            Some(data) => event.data(data.into_data()),
            None => event,
        };
        let metadata =
            metadata.map(Value::into_metadata).transpose().map_err(|reason| invalid(Field::Metadata, reason))?;
        let event = match metadata.flatten() {
            Some(metadata) => event.metadata_json(metadata),
            None => event,
        };
        Ok(event.build()?)
    }

    /// The recording time in a record.
    pub(crate) fn recorded_at(&self, record: &Record<'_>) -> Result<Option<String>, Failure> {
        self.text(Field::RecordedAt, record)
    }

    /// The version and the revision in a record.
    pub(crate) fn place(&self, record: &Record<'_>) -> Result<(Option<u64>, Option<u64>), Failure> {
        Ok((self.number(Field::Version, record)?, self.number(Field::Revision, record)?))
    }

    fn number(&self, field: Field, record: &Record<'_>) -> Result<Option<u64>, Failure> {
        let Some(text) = self.text(field, record)? else { return Ok(None) };
        let not_a_number = |_| Failure::malformed(format!("the {} {text:?} is not a whole number", field.name()));
        text.parse().map(Some).map_err(not_a_number)
    }

    fn text(&self, field: Field, record: &Record<'_>) -> Result<Option<String>, Failure> {
        let Some(expression) = self.of(field) else { return Ok(None) };
        let value = expression.evaluate(record, true).map_err(|reason| invalid(field, reason))?;
        match value {
            Some(found) => found.value.text().map_err(|reason| invalid(field, reason)),
            None => Ok(None),
        }
    }
}

fn invalid(field: Field, reason: impl Into<String>) -> Failure {
    Error::invalid_event(field.name(), reason).into()
}

/// Which format a record seems to have that is not a valid event, and what to do then.
pub(crate) fn recognize(record: &[u8]) -> Option<String> {
    let record = Record::parse(record, Number::default()).ok()?;
    let has = |keys: &[&str]| keys.iter().all(|key| record.has(key));
    let format = match () {
        () if has(&["specversion", "source"]) => "cloudevents",
        () if has(&["eventId", "eventType"]) || has(&["entries", "selfUrl"]) || has(&["content", "summary"]) => {
            "kurrentdb"
        }
        () if has(&["actor", "repo", "payload"]) => "gharchive",
        () if !record.has("aggregate_id") => {
            return Some("if another program wrote it, say with --map what is what in it".to_owned());
        }
        () => return None,
    };
    let (_, called, _) = FORMATS.iter().find(|(name, ..)| *name == format)?;
    Some(format!("this looks like {called}: write --map {format}"))
}
