//! Expressions over the JSON of a record.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use eventstore::backend::limits::RECORDED_AT_END;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::json;

/// A JSON object, with its members in their original order.
pub(crate) struct Record<'a> {
    text: &'a str,
    members: Vec<(Cow<'a, str>, &'a str)>,
    number: Number,
}

/// What distinguishes a record from all others of its input.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Number {
    pub(crate) record: u64,
    /// The index in its record, if the record has several.
    pub(crate) inner: Option<u64>,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.inner {
            None => write!(f, "{}", self.record),
            Some(inner) => write!(f, "{}.{inner}", self.record),
        }
    }
}

impl<'a> Record<'a> {
    /// Splits an object into its members.
    pub(crate) fn parse(bytes: &'a [u8], number: Number) -> Result<Self, Failure> {
        let text = json::object(bytes)?.trim_ascii();
        let members = members(text).map_err(|error| Failure::malformed(json::describe(&error)))?;
        Ok(Record { text, members, number })
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.members.iter().any(|(name, _)| name == key)
    }

    /// An object of all members except these.
    pub(crate) fn without(&self, taken: &[usize]) -> String {
        let mut text = String::from("{");
        for (index, (key, value)) in self.members.iter().enumerate() {
            if !taken.contains(&index) {
                let comma = if text.len() == 1 { "" } else { "," };
                // Writing to a String does not fail.
                let _ = write!(text, "{comma}{}:{value}", serde_json::Value::from(key.as_ref()));
            }
        }
        text.push('}');
        text
    }
}

/// The members of an object.
fn members(object: &str) -> serde_json::Result<Vec<(Cow<'_, str>, &str)>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(Cow<'de, str>, &'de str)>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
                members.push((key, value.get()));
            }
            Ok(members)
        }
    }

    #[derive(Deserialize)]
    struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

    let mut deserializer = serde_json::Deserializer::from_str(object);
    let members = deserializer.deserialize_map(Members)?;
    deserializer.end()?;
    Ok(members)
}

/// The elements of an array; `None` if it is not an array.
pub(crate) fn elements(array: &str) -> Option<Vec<&str>> {
    let elements: Vec<&RawValue> = serde_json::from_str(array).ok()?;
    Some(elements.into_iter().map(RawValue::get).collect())
}

/// How a value is computed from a record, and the source text of that.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expression {
    written: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The value at the end of these steps; without steps, the whole record.
    Path(Vec<Step>),
    /// This JSON.
    Constant(String),
    /// The concatenated texts of all parts; nothing if a part is missing.
    Join(Vec<Expression>),
    /// The first value that exists.
    First(Vec<Expression>),
    Call(Function, Box<Expression>),
    /// The number of the record.
    Number,
    /// The members that no field takes unchanged.
    Rest,
}

/// A step into an object or an array.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    /// The SHA-256 of the value as written, in hexadecimal.
    Sha256,
    /// The bytes of a Base64 text.
    Base64,
    /// The content of a text if it is an object or an array; any other value as written.
    Json,
    /// The content of a text.
    Text,
    /// A number plus one.
    Next,
    /// A time in seconds since 1970.
    Unix,
    /// A time in milliseconds since 1970.
    UnixMs,
}

impl Function {
    pub(crate) const ALL: [(&'static str, Function); 7] = [
        ("sha256", Function::Sha256),
        ("base64", Function::Base64),
        ("json", Function::Json),
        ("text", Function::Text),
        ("next", Function::Next),
        ("unix", Function::Unix),
        ("unix_ms", Function::UnixMs),
    ];
}

/// The value of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// JSON as written in the input.
    Json(Cow<'a, str>),
    /// A constructed text.
    Text(String),
    /// Bytes encoded in a text.
    Bytes(Vec<u8>),
}

/// The value of an expression, and whether it is a whole member of the record.
#[derive(Clone, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) value: Value<'a>,
    pub(crate) member: Option<usize>,
}

impl<'a> From<Value<'a>> for Found<'a> {
    fn from(value: Value<'a>) -> Self {
        Found { value, member: None }
    }
}

impl Value<'_> {
    /// The value as a text; `None` for `null`.
    pub(crate) fn text(&self) -> Result<Option<String>, String> {
        match self {
            Value::Json(json) => match json.as_bytes().first() {
                Some(b'"') => serde_json::from_str(json).map(Some).map_err(|error| json::describe(&error)),
                Some(b'n') => Ok(None),
                Some(b'{') => Err("it is an object, but must be a string or a number".to_owned()),
                Some(b'[') => Err("it is an array, but must be a string or a number".to_owned()),
                _ => Ok(Some(json.to_string())),
            },
            Value::Text(text) => Ok(Some(text.clone())),
            Value::Bytes(bytes) => String::from_utf8(bytes.clone()).map(Some).map_err(|_| "it is not UTF-8".to_owned()),
        }
    }

    pub(crate) fn into_data(self) -> Vec<u8> {
        match self {
            Value::Json(json) => json.into_owned().into_bytes(),
            Value::Text(text) => serde_json::Value::from(text).to_string().into_bytes(),
            Value::Bytes(bytes) => bytes,
        }
    }

    /// The value as the text of a JSON object, unchecked; `None` for `null`.
    pub(crate) fn into_metadata(self) -> Result<Option<String>, String> {
        match self {
            Value::Json(json) => Ok(Some(json.into_owned()).filter(|json| json != "null")),
            Value::Text(text) => Ok(Some(serde_json::Value::from(text).to_string())),
            Value::Bytes(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| "it is not UTF-8".to_owned()),
        }
    }

    fn is_null(&self) -> bool {
        matches!(self, Value::Json(json) if json == "null")
    }

    fn is_empty_text(&self) -> bool {
        matches!(self, Value::Json(json) if json == "\"\"") || matches!(self, Value::Text(text) if text.is_empty())
    }
}

impl Expression {
    pub(crate) fn new(written: &str, kind: Kind) -> Self {
        Expression { written: written.trim().to_owned(), kind }
    }

    pub(crate) fn whole() -> Self {
        Expression::new(".", Kind::Path(Vec::new()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.written
    }

    pub(crate) fn is_rest(&self) -> bool {
        self.kind == Kind::Rest
    }

    /// Whether it contains `rest()`.
    pub(crate) fn has_rest(&self) -> bool {
        match &self.kind {
            Kind::Rest => true,
            Kind::Path(_) | Kind::Constant(_) | Kind::Number => false,
            Kind::Join(parts) | Kind::First(parts) => parts.iter().any(Expression::has_rest),
            Kind::Call(_, of) => of.has_rest(),
        }
    }

    /// The value for a record; `None` if it is missing. If a text is wanted, alternatives skip an empty text.
    pub(crate) fn evaluate<'a>(&self, record: &Record<'a>, is_text: bool) -> Result<Option<Found<'a>>, String> {
        match &self.kind {
            Kind::Path(steps) => at(record, steps),
            Kind::Constant(json) => Ok(Some(Value::Json(json.clone().into()).into())),
            Kind::Number => Ok(Some(Value::Text(record.number.to_string()).into())),
            Kind::Rest => Ok(None),
            Kind::First(alternatives) => {
                for alternative in alternatives {
                    let found = alternative.evaluate(record, is_text)?;
                    let is_there =
                        |found: &Found<'_>| !(found.value.is_null() || is_text && found.value.is_empty_text());
                    if let Some(found) = found.filter(is_there) {
                        return Ok(Some(found));
                    }
                }
                Ok(None)
            }
            Kind::Join(parts) => {
                let mut joined = String::new();
                for part in parts {
                    let text = match part.evaluate(record, true)? {
                        Some(found) => found.value.text().map_err(|reason| format!("{}: {reason}", part.written))?,
                        None => None,
                    };
                    let Some(text) = text else { return Ok(None) };
                    joined.push_str(&text);
                }
                Ok(Some(Value::Text(joined).into()))
            }
            Kind::Call(function, of) => match of.evaluate(record, is_text)? {
                Some(found) => call(*function, found),
                None => Ok(None),
            },
        }
    }
}

fn at<'a>(record: &Record<'a>, steps: &[Step]) -> Result<Option<Found<'a>>, String> {
    let (first, rest) = match steps {
        [] => return Ok(Some(Value::Json(record.text.into()).into())),
        [Step::Index(_), ..] => return Ok(None),
        [Step::Key(key), rest @ ..] => (key, rest),
    };
    let Some(member) = only(&record.members, first)? else { return Ok(None) };
    let mut json = record.members[member].1;
    for step in rest {
        let inner = match step {
            Step::Key(key) if json.starts_with('{') => {
                let members = members(json).map_err(|error| json::describe(&error))?;
                only(&members, key)?.map(|index| members[index].1)
            }
            Step::Index(index) if json.starts_with('[') => elements(json).and_then(|all| all.get(*index).copied()),
            _ => None,
        };
        match inner {
            Some(inner) => json = inner,
            None => return Ok(None),
        }
    }
    Ok(Some(Found { value: Value::Json(json.into()), member: rest.is_empty().then_some(member) }))
}

/// The member with this key. If it occurs twice, it is ambiguous.
fn only(members: &[(Cow<'_, str>, &str)], key: &str) -> Result<Option<usize>, String> {
    let mut with_key = members.iter().enumerate().filter(|(_, (name, _))| name == key).map(|(index, _)| index);
    match (with_key.next(), with_key.next()) {
        (Some(_), Some(_)) => Err(format!("the key {key:?} appears twice")),
        (first, _) => Ok(first),
    }
}

fn call<'a>(function: Function, found: Found<'a>) -> Result<Option<Found<'a>>, String> {
    let Found { value, member } = found;
    if value.is_null() && function != Function::Sha256 {
        return Ok(None);
    }
    let value = match (function, value) {
        (Function::Sha256, value) => {
            let bytes = match value {
                Value::Json(json) => json.into_owned().into_bytes(),
                Value::Text(text) => text.into_bytes(),
                Value::Bytes(bytes) => bytes,
            };
            let mut hash = String::with_capacity(64);
            for byte in Sha256::digest(&bytes) {
                // Writing to a String does not fail.
                let _ = write!(hash, "{byte:02x}");
            }
            return Ok(Some(Value::Text(hash).into()));
        }
        (Function::Next, value) => {
            let text = value.text()?.unwrap_or_default();
            let number: u64 = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
            return Ok(Some(Value::Text((u128::from(number) + 1).to_string()).into()));
        }
        (Function::Unix | Function::UnixMs, value) => {
            let text = value.text()?.unwrap_or_default();
            let digits = if function == Function::Unix { 6 } else { 3 };
            let micros = shifted(&text, digits).ok_or_else(|| format!("{text:?} is not a number that is a time"))?;
            let time = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
            return Ok(Some(Value::Text(json::rfc3339(time).to_string()).into()));
        }
        (Function::Base64, value) => {
            let text = value.text()?.unwrap_or_default();
            let bytes = BASE64.decode(text).map_err(|error| format!("it is not padded standard Base64: {error}"))?;
            Value::Bytes(bytes)
        }
        (Function::Text, value) => Value::Bytes(value.text()?.unwrap_or_default().into_bytes()),
        (Function::Json, Value::Json(json)) if json.starts_with('"') => {
            let text: String = serde_json::from_str(&json).map_err(|error| json::describe(&error))?;
            let is_json = text.trim_ascii_start().starts_with(['{', '[']);
            match serde_json::from_str::<&RawValue>(&text) {
                _ if text.trim_ascii().is_empty() => return Ok(None),
                // Without surrounding white space.
                Ok(inner) if is_json => Value::Bytes(inner.get().as_bytes().to_vec()),
                _ => Value::Json(json),
            }
        }
        (Function::Json, value) => value,
    };
    Ok(Some(Found { value, member }))
}

/// A decimal number with its point moved to the right by this many digits, truncated, if it is below the end of the
/// recordable times.
fn shifted(text: &str, digits: usize) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(digits).collect();
    let micros: u64 = format!("{whole}{fraction}").parse().ok()?;
    Some(micros).filter(|&micros| Duration::from_micros(micros) < RECORDED_AT_END)
}
