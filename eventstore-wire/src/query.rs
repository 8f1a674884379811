//! The parameters of requests, as the query string of a URL.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use eventstore_api::limits::{RECORDED_AT_END, clamp_recorded_at};
use eventstore_api::{AggregateOptions, Direction, Error, LoadOptions, Result};
use percent_encoding::percent_decode_str;

/// The parameters of a request. Each is taken by name; any left at the end were misspelled.
#[derive(Clone, Debug)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses a query string, without the `?`.
    ///
    /// # Errors
    ///
    /// `InvalidOption` if a value is not UTF-8.
    pub fn new(text: &str) -> Result<Self> {
        let decode = |piece: &str| {
            let decoded = percent_decode_str(&piece.replace('+', " ")).decode_utf8().map(|text| text.into_owned());
            decoded.map_err(|_| invalid(piece, "it is not UTF-8"))
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let read = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        };
        pairs.map(read).collect::<Result<_>>().map(Query)
    }

    /// The parameter with this name.
    ///
    /// # Errors
    ///
    /// `InvalidOption` if it occurs more than once.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        let mut values = self.texts(name);
        if values.len() > 1 {
            return Err(invalid(name, "it occurs more than once"));
        }
        Ok(values.pop())
    }

    /// All parameters with this name.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        let (values, others) = std::mem::take(&mut self.0).into_iter().partition(|(other, _)| other == name);
        self.0 = others;
        let values: Vec<_> = values;
        values.into_iter().map(|(_, value)| value).collect()
    }

    /// The parameter with this name, parsed.
    ///
    /// # Errors
    ///
    /// `InvalidOption` if it occurs more than once, or cannot be parsed.
    pub fn value<T: FromStr>(&mut self, name: &str) -> Result<Option<T>>
    where
        T::Err: std::fmt::Display,
    {
        let parse = |text: String| {
            text.parse().map_err(|error: T::Err| {
                // The error texts of values begin with the name that the value's type assumes.
                let error = error.to_string();
                let reason = error.split_once(": ").map_or(error.as_str(), |(_, reason)| reason);
                invalid(name, &format!("{text:?} is not valid: {reason}"))
            })
        };
        self.text(name)?.map(parse).transpose()
    }

    /// A boolean parameter: true if it is `true` or has no value, false if it is `false`.
    ///
    /// # Errors
    ///
    /// `InvalidOption` for any other value.
    pub fn flag(&mut self, name: &str) -> Result<bool> {
        self.flag_or(name, false)
    }

    /// The same, with a default if the parameter is absent.
    ///
    /// # Errors
    ///
    /// Those of [`flag`](Self::flag).
    pub fn flag_or(&mut self, name: &str, missing: bool) -> Result<bool> {
        match self.text(name)?.as_deref() {
            None => Ok(missing),
            Some("false") => Ok(false),
            Some("" | "true") => Ok(true),
            Some(other) => Err(invalid(name, &format!("{other:?} is neither true nor false"))),
        }
    }

    /// A duration, such as `500ms`.
    ///
    /// # Errors
    ///
    /// `InvalidOption` if it is not a duration.
    pub fn duration(&mut self, name: &str) -> Result<Option<Duration>> {
        let parse = |text: String| parse_duration(&text).map_err(|reason| invalid(name, &reason));
        self.text(name)?.map(parse).transpose()
    }

    fn time(&mut self, name: &str) -> Result<Option<SystemTime>> {
        let parse = |text: String| {
            humantime::parse_rfc3339(&text)
                .map_err(|_| invalid(name, &format!("{text:?} is not a time; write one as 2026-11-28T12:30:00Z")))
        };
        self.text(name)?.map(parse).transpose()
    }

    /// Takes the parameters of a load.
    ///
    /// # Errors
    ///
    /// `InvalidOption` for an invalid value.
    pub fn load(&mut self) -> Result<LoadOptions> {
        let mut options = LoadOptions::all();
        options.since = self.value("since")?.unwrap_or_default();
        options.before = self.value("before")?;
        options.aggregate_id = self.text("aggregate")?;
        options.since_revision = self.value::<u64>("since_revision")?.unwrap_or_default().into();
        options.types = self.texts("type");
        options.aggregate_prefix = self.text("aggregate_prefix")?;
        options.recorded_since = self.time("recorded_since")?;
        options.recorded_before = self.time("recorded_before")?;
        options.direction = self.value("direction")?.unwrap_or_default();
        options.limit = self.value("limit")?;
        Ok(options)
    }

    /// Takes the parameters of a list of aggregates.
    ///
    /// # Errors
    ///
    /// `InvalidOption` for an invalid value.
    pub fn aggregates(&mut self) -> Result<AggregateOptions> {
        let mut options = AggregateOptions::all();
        options.prefix = self.text("prefix")?.unwrap_or_default();
        options.after = self.text("after")?.unwrap_or_default();
        options.before = self.value("before")?;
        Ok(options)
    }

    /// Checks that every parameter was taken.
    ///
    /// # Errors
    ///
    /// `InvalidOption` with the first one that was not taken.
    pub fn finish(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(invalid(name, "this resource has no such parameter; docs/wire.md lists them")),
        }
    }
}

fn invalid(option: &str, reason: &str) -> Error {
    Error::InvalidOption { option: option.to_owned(), reason: reason.to_owned() }
}

/// Parses a duration, such as `500ms` or `2s`. The error is for people.
pub fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{text:?} is not a duration ({error}); write 500ms or 2s"))
}

/// A time in the form used in answers, such as `2026-11-28T12:30:00.000000Z`.
#[must_use]
pub fn format_time(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(clamp_recorded_at(time)).to_string()
}

/// Builds a query string.
pub struct QueryWriter(form_urlencoded::Serializer<'static, String>);

impl Default for QueryWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for QueryWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueryWriter")
    }
}

impl QueryWriter {
    /// No parameters.
    #[must_use]
    pub fn new() -> Self {
        QueryWriter(form_urlencoded::Serializer::new(String::new()))
    }

    /// Adds a parameter.
    pub fn put(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.0.append_pair(name, &value.to_string());
        self
    }

    /// Adds a parameter if there is a value.
    pub fn put_some(&mut self, name: &str, value: Option<impl std::fmt::Display>) -> &mut Self {
        if let Some(value) = value {
            self.put(name, value);
        }
        self
    }

    /// The query string, without the `?`.
    #[must_use]
    pub fn finish(&mut self) -> String {
        self.0.finish()
    }
}

/// The parameters of a load. Defaults are omitted.
#[must_use]
pub fn load_query(options: &LoadOptions) -> QueryWriter {
    let mut query = QueryWriter::new();
    let number = |number: u64| (number > 0).then_some(number);
    query
        .put_some("since", number(options.since.get()))
        .put_some("before", options.before)
        .put_some("aggregate", options.aggregate_id.as_ref())
        .put_some("since_revision", number(options.since_revision.get()));
    for event_type in &options.types {
        query.put("type", event_type);
    }
    query
        .put_some("aggregate_prefix", options.aggregate_prefix.as_ref())
        .put_some("recorded_since", options.recorded_since.map(time))
        .put_some("recorded_before", options.recorded_before.map(time))
        .put_some("direction", (options.direction != Direction::Forward).then_some(options.direction))
        .put_some("limit", options.limit);
    query
}

/// The parameters of a list of aggregates.
#[must_use]
pub fn aggregate_query(options: &AggregateOptions) -> QueryWriter {
    let mut query = QueryWriter::new();
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    query
        .put_some("prefix", text(&options.prefix))
        .put_some("after", text(&options.after))
        .put_some("before", options.before);
    query
}

/// A time that selects the same events: a time that cannot be written is replaced by one before or after all events.
fn time(time: SystemTime) -> humantime::Rfc3339Timestamp {
    let end = SystemTime::UNIX_EPOCH + RECORDED_AT_END;
    let behind_all = end - Duration::from_nanos(1);
    humantime::format_rfc3339_nanos(if time >= end { behind_all } else { time.max(clamp_recorded_at(time)) })
}

#[cfg(test)]
mod tests {
    use eventstore_api::{Revision, Version};

    use super::*;

    fn load(text: &str) -> Result<LoadOptions> {
        let mut query = Query::new(text)?;
        let options = query.load()?;
        query.finish().map(|()| options)
    }

    #[test]
    fn loads_come_back() {
        let since_1970 = |nanos| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
        for options in [
            LoadOptions::all(),
            LoadOptions::since(Version::new(u64::MAX)).before(Version::ZERO).backward().limit(0),
            LoadOptions::all().aggregate("é &=?#+%00\u{0}").types(["a b", "", "a+b"]).since_revision(Revision::new(3)),
            LoadOptions::all().aggregate("").aggregate_prefix(""),
            LoadOptions::all().recorded_since(since_1970(1)).recorded_before(since_1970(1_700_000_000_123_456_789)),
        ] {
            let text = load_query(&options).finish();
            assert_eq!(load(&text).expect(&text), options);
        }
        assert_eq!(load_query(&LoadOptions::all()).finish(), "");
    }

    #[test]
    fn times_that_cannot_be_written_divide_the_events_as_before() {
        let (first, end) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + RECORDED_AT_END);
        let last = end - Duration::from_micros(1);
        let second = Duration::from_secs(1);
        for filter in [first - second, first, first + second, last, end, end + second, last + Duration::from_nanos(10)]
        {
            let text = load_query(&LoadOptions::all().recorded_since(filter)).finish();
            let read = load(&text).expect(&text).recorded_since.expect("a time");
            for recorded in [first, first + second, last] {
                assert_eq!(recorded >= read, recorded >= filter, "{filter:?} {recorded:?}");
            }
        }
    }

    #[test]
    fn aggregates_come_back() {
        for options in
            [AggregateOptions::all(), AggregateOptions::all().prefix("a&").after("a/é").before(Version::new(7))]
        {
            let text = aggregate_query(&options).finish();
            let mut query = Query::new(&text).expect("UTF-8");
            assert_eq!(query.aggregates().expect(&text), options);
            query.finish().expect("all was taken");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let option = |text: &str| match load(text) {
            Err(Error::InvalidOption { option, .. }) => option,
            other => panic!("{text}: {other:?}"),
        };
        for (text, name) in [
            ("since=x", "since"),
            ("since=1&since=2", "since"),
            ("limit=-1", "limit"),
            ("direction=down", "direction"),
            ("recorded_since=today", "recorded_since"),
            ("sinse=1", "sinse"),
            ("aggregate=%FF", "%FF"),
            ("%c3%28=1", "%c3%28"),
        ] {
            assert_eq!(option(text), name);
        }
    }

    #[test]
    fn flags_and_durations() {
        let mut query = Query::new("a&b=true&c=false&d=1&timeout=1500ms&wait=soon").expect("UTF-8");
        assert!(query.flag("a").expect("valid") && query.flag("b").expect("valid") && !query.flag("c").expect("valid"));
        assert!(query.flag("d").is_err() && !query.flag("e").expect("absent"));
        assert_eq!(query.duration("timeout").expect("valid"), Some(Duration::from_millis(1500)));
        assert!(query.duration("wait").is_err());
    }
}
