//! The command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};
use eventstore::limits::MAX_BATCH_EVENTS;

use crate::times;

/// An embedded event store with interchangeable engines.
#[derive(Debug, Parser)]
#[command(name = "eventstore", version, about, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// The store: an engine and a directory, such as lmdb:./data. `append` and `import` create it if it does not exist
    #[arg(
        long,
        global = true,
        display_order = 100,
        value_name = "URL",
        env = "EVENTSTORE_URL",
        default_value = "lmdb:./eventstore-data"
    )]
    pub(crate) store: String,

    #[command(subcommand)]
    pub(crate) command: Command,
}

// clap wraps a paragraph where a line of it ends: so each is one line here. Examples are wrapped by hand, to 60 columns.
const EXAMPLES: &str = "\
Examples:
  eventstore demo
  eventstore append orders.jsonl
  eventstore import events.jsonl.gz
  eventstore load --aggregate order-42
  eventstore copy --to lmdb:./copy
  eventstore backup ./backup

Results go to stdout, everything else to stderr. An error is one line, `error[code]: what happened, and what to do`. A \
command that only prints ends when its reader leaves, as in `| head`; one that writes or judges goes on to its end.

Exit codes: 0 done, 1 error or damage, 2 wrong usage, 3 done but for lines that were skipped, 128 + N ended in good order by signal N: 130 by Ctrl-C, 143 by \
SIGTERM, 129 by SIGHUP. A second signal ends it at once.

A store belongs to one process at a time: stop the program that has it open first. What only reads \
writes nothing, so that it may be done by several at once, and to what cannot be written.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take a guided tour in a temporary directory; nothing stays behind
    Demo,
    /// Append events from JSON lines and print the place of each one once it is durable
    #[command(after_help = APPEND)]
    Append(AppendArgs),
    /// Import many events from JSON, CSV or other programs' files; safe to repeat: events already there are counted, not
    /// stored again
    #[command(after_help = IMPORT)]
    Import(ImportArgs),
    /// Print events as JSON lines or as a table
    #[command(after_help = LOAD)]
    Load(LoadArgs),
    /// List the aggregates, one JSON object a line: id, revision, and version of the newest event
    #[command(after_help = AGGREGATES)]
    Aggregates {
        /// Only aggregates whose ids begin like this
        #[arg(long, value_name = "PREFIX", allow_hyphen_values = true)]
        prefix: Option<String>,
    },
    /// Print the event with this id
    Get {
        /// The event's id
        id: String,
    },
    /// Print the version of the newest event, which is also the number of events
    Latest,
    /// Print the store's statistics, one `name: value` a line
    Stats {
        /// Print them as one JSON object, numbers as numbers
        #[arg(long)]
        json: bool,
    },
    /// Print one hash over all events: the same for two stores with the same events in the same order
    Digest {
        /// Only the events up to this version, to compare with a store that ends there
        #[arg(long, value_name = "VERSION")]
        until: Option<String>,
    },
    /// Copy every event to another store, of whatever engine, with the same versions, revisions and times
    #[command(after_help = COPY)]
    Copy {
        /// The other store: new, empty, or the target of an earlier copy, which goes on
        #[arg(long, value_name = "URL")]
        to: String,
    },
    /// Read everything and name what is wrong: damaged records, gaps, indexes that do not agree with the events
    #[command(after_help = "Exit code: 0 if the store is sound, 1 if something is wrong with it.")]
    Verify,
    /// Write a copy of the store, which can be opened as it is, to a directory
    Backup {
        /// Where to: a directory that is missing or empty, or an earlier backup of the store
        directory: PathBuf,
    },
    /// Make a new store of a backup, and verify it. `--store` names the new store; the backup stays as it is
    #[command(after_help = "Example:\n  eventstore --store lmdb:./restored restore ./backup")]
    Restore {
        /// The backup
        directory: PathBuf,
    },
    /// Compress what is left to be compressed, and give unused space of the engine back
    Gc {
        /// Everything that makes the files smaller, up to writing them anew: as long as reading and writing the whole
        /// store takes, with as much space again meanwhile
        #[arg(long)]
        full: bool,
    },
    /// Measure engines on this machine, about a minute each, and compare them. It makes stores of its own and deletes them
    /// at the end; `--store` names an engine and, if it matters where, an empty directory
    #[command(after_help = BENCH)]
    Bench(BenchArgs),
    /// Make the index anew from the log, and accept it if the log has lost its end. What is in the way is put aside
    Repair,
}

const COPY: &str = "\
The digests of both are compared at the end. After an error or a signal, the same command goes on.

Examples:
  eventstore --store lmdb:./data copy --to rocksdb:./data2
  eventstore --store sled:./old copy \\
      --to 'lmdb:./new?map_size=4GiB'";

const APPEND: &str = "\
One event a line:
  {\"id\":\"o1\",\"type\":\"OrderPlaced\",\"aggregate_id\":\"order-42\"}
and with more fields, if they are wanted:
  \"data\":{\"total\":12}          any JSON, byte for byte
  \"data_base64\":\"/wA=\"         instead, what is not JSON
  \"metadata\":{\"source\":\"web\"}   a JSON object

`version`, `revision` and `recorded_at`, as `load` prints them, are ignored: an append is recorded now. `import` keeps times.

Each event is answered with its place, {\"id\":\"o1\",\"version\":1,\"revision\":1}, when it is durable. The same event again \
gets the same answer, so whatever was not answered can be appended again. If nobody reads the answers any more it goes on; \
if they cannot be written it ends.

Examples:
  eventstore append orders.jsonl
  eventstore append --expect revision=3 change.jsonl
  tail -f new-orders.jsonl |
      eventstore append --concurrency 64 --timeout 500ms";

#[derive(Args, Debug)]
pub(crate) struct AppendArgs {
    /// The events, one JSON object a line, plain or compressed; `-` is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,

    /// Append this many events at a time, all or none, and at most 64 MiB; the rest at the end
    #[arg(long, value_name = "EVENTS", default_value_t = 1, value_parser = batch_events)]
    pub(crate) batch: usize,

    /// Keep this many appends in flight. They share disk syncs and are answered as they become durable; they queue in
    /// the order of the input, but only with 1 is it certain that they are stored in it
    #[arg(long, value_name = "APPENDS", default_value_t = 1, value_parser = concurrency)]
    pub(crate) concurrency: usize,

    /// What must hold for each append: any; none or exists, the aggregate has no events, or has some; revision=N, the
    /// aggregate's newest event has this revision; latest=N, the store's newest event has this version
    #[arg(long, value_name = "CONDITION", default_value = "any", allow_hyphen_values = true)]
    pub(crate) expect: String,

    /// When an event is durable: sync, it survives a power cut; buffered, it survives a killed process. Without it, as
    /// the store is set up, which is sync if its URL does not say otherwise
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<String>,

    /// The longest that one append may take, such as 500ms or 2s; without it, as long as it takes
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

const IMPORT: &str = "\
What is stored is always a beginning of the input, in its order. After an error or a signal, import the same input again: it \
continues where it stopped, because events are known by their ids. One that is already there stays as it is, with the time \
that it has.

FILE may be plain, or compressed with gzip, zstd, xz or bzip2. It holds events as `load` prints them, one a line or in an \
array. With --map it holds what other programs write: JSON, or CSV whose first row has the titles. Each JSON object becomes an \
event, and so does each row, as an object of texts:

  --map cloudevents     CloudEvents; the aggregate is the
                        subject, if there is one, or the
                        source
  --map kurrentdb       KurrentDB, EventStoreDB: exported
                        events, or pages of an Atom feed
                        with embed=body, the oldest page
                        first; the aggregate is the stream
  --map gharchive       GH Archive, from 2015 on; the
                        aggregate is the repository
  --map FIELD=EXPR,...  any other. It may change one of
                        these: --map cloudevents,id=.id

FIELD is id, type, aggregate_id, data, metadata or recorded_at; version and revision are for --check-places. Without data= it \
is all of the record. If a record has its events in an array, each=.PATH or each=reverse(.PATH) says where. EXPR is

  .a.b   .\"a key\"[0]   what stands there, data byte for
                        byte; . is all of the record
  \"text\"   {\"a\":1}      the same for each event
  .a+\"-\"+.b             texts and numbers, joined
  .a//.b                the first that is there and not null
  sha256(.)             a hash of what stands there: an id
                        that is the same when the record is
                        imported again. Of records that are
                        equal to the byte only one becomes
                        an event
  number()              the record's number in the input, to
                        tell those apart:
                        sha256(.)+\"-\"+number()
  rest()                as metadata or data: an object of
                        all that no other field takes whole.
                        Without it that is left out
  text(.a)  base64(.a)  the characters of the text; what
                        they are Base64 of
  json(.a)              the same if they are an object or an
                        array; if not, what stands there
  unix(.a) unix_ms(.a)  the time so many seconds or ms after
                        1970 began
  next(.a)              the number plus one

With --skip-invalid a record that is no event, or whose id another event has, is written to a file, as in
  {\"line\":3,\"error\":\"…\",\"input\":\"{\\\"id\\\":1,}\"}
and the import goes on, to end with exit code 3. Mend each `input` there, and import the file with --retry-skipped and \
otherwise the same options. An input that cannot be read on ends the import all the same.

Examples:
  eventstore import events.jsonl.zst
  zcat events-*.jsonl.gz | eventstore import -
  eventstore --store lmdb:./old load |
    eventstore --store lmdb:./new import --check-places -
  eventstore import --map gharchive --dry-run hour.json.gz
  eventstore import sales.csv --map 'id=sha256(.),
    type=\"Sale\",aggregate_id=.customer,recorded_at=.time'
  eventstore import --skip-invalid bad.jsonl events.jsonl
  eventstore import --retry-skipped bad.jsonl";

#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// The events, as `load` prints them or as --map says; `-` is stdin
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// What is what in the records of another program; see below. May be repeated: the last one goes first
    #[arg(long, value_name = "MAPPING")]
    pub(crate) map: Vec<String>,

    /// What the input is
    #[arg(long, value_enum, default_value_t = InputFormat::Auto)]
    pub(crate) format: InputFormat,

    /// Print the first three events as they would be stored, and read all others. Nothing is stored, nor is a store made, so
    /// what the store would refuse is not known
    #[arg(long, conflicts_with = "check_places")]
    pub(crate) dry_run: bool,

    /// Whether events keep the `recorded_at` that they have in the input, as a copy does, or are recorded now. Those
    /// without one are recorded now
    #[arg(long, value_enum, value_name = "TIMES", default_value_t = KeepTimes::Keep)]
    pub(crate) recorded_at: KeepTimes,

    /// End before the first event whose `version` or `revision` in the input is not the one that it gets, or has, in the
    /// store. Each event looks up its id and its aggregate first, which takes longer
    #[arg(long, conflicts_with = "skip_invalid")]
    pub(crate) check_places: bool,

    /// Leave out records that are no events, and those that the store refuses; write them to this file, which must be missing
    /// or empty, and go on
    #[arg(long, value_name = "FILE")]
    pub(crate) skip_invalid: Option<PathBuf>,

    /// The input is what --skip-invalid has written, mended
    #[arg(long)]
    pub(crate) retry_skipped: bool,
}

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// What it looks like
    Auto,
    /// JSON: one object a line, an array, or objects over several lines
    Json,
    /// Rows with commas, semicolons, tabs or bars between the columns, and titles in the first
    Csv,
}

/// What becomes of the times in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeepTimes {
    /// They are stored
    Keep,
    /// They are not, and the summary tells for how many events
    Now,
}

const LOAD: &str = "\
An event is printed if everything holds that is asked of it. The store finds events by version and by aggregate; for types, \
prefixes and times all events in question are read. Times of recording are in no certain order.

Examples:
  What is new since version 1200:
    eventstore load --since 1200
  One order's history:
    eventstore load --aggregate order-42
  The newest ten, to look at:
    eventstore load --backward --limit 10 --format table
  Wait until 100 events are there:
    eventstore load --follow --limit 100
  Some types, of some aggregates:
    eventstore load --type Paid --aggregate-prefix order-
  What was recorded since then:
    eventstore load --recorded-since 2025-01-01";

#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// Only events after this version; 0 is before all events
    #[arg(long, value_name = "VERSION", default_value = "0", allow_hyphen_values = true)]
    pub(crate) since: String,

    /// Only events of this aggregate
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub(crate) aggregate: Option<String>,

    /// Only events of aggregates whose ids begin like this
    #[arg(long, value_name = "PREFIX", allow_hyphen_values = true, conflicts_with = "aggregate")]
    pub(crate) aggregate_prefix: Option<String>,

    /// Only events of this type; may be repeated, for events of any of these
    #[arg(long = "type", value_name = "TYPE", allow_hyphen_values = true)]
    pub(crate) types: Vec<String>,

    /// Only events that were recorded at this time or later: 2025-01-31T12:30:00Z, any other offset, or a date in UTC
    #[arg(long, value_name = "TIME", value_parser = times::parse_or_date)]
    pub(crate) recorded_since: Option<SystemTime>,

    /// Only events that were recorded before this time
    #[arg(long, value_name = "TIME", value_parser = times::parse_or_date)]
    pub(crate) recorded_until: Option<SystemTime>,

    /// Print at most this many events; without it, all
    #[arg(long, value_name = "EVENTS")]
    pub(crate) limit: Option<u64>,

    /// Newest first
    #[arg(long, conflicts_with = "follow")]
    pub(crate) backward: bool,

    /// Do not end at the newest event, but wait for more, until the limit or a signal. While this runs, no other process
    /// can append; a program follows its own store with `subscribe`
    #[arg(long)]
    pub(crate) follow: bool,

    /// How to print the events
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    pub(crate) format: Format,
}

const AGGREGATES: &str = "\
They come in the order of their first events. All events are read, once, and the newest of each aggregate is looked up; that \
needs no more memory for many aggregates than for few.

Example:
  eventstore aggregates --prefix order- | sort";

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line, everything unchanged; can be appended and imported
    Jsonl,
    /// Columns to look at, with long data cut
    Table,
}

const BENCH: &str = "\
What is measured takes turns: each engine a part of each measurement, so that whatever else the machine does meets all of \
them. Everything is durable when it is answered, but for what is called buffered, and every result is checked.

A URL without a directory, such as lmdb: or rocksdb:?block_cache=1GiB, measures in the working directory's file system.

Examples:
  eventstore bench --store lmdb:
  eventstore bench --store lmdb: --against rocksdb: \\
      --against sled: --report ./report
  eventstore bench --store rocksdb: --format json \\
      --against 'rocksdb:?table_compression=zstd'";

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Another store to measure beside the first, with an engine or options of its own; may be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) against: Vec<String>,

    /// Write a report with plots, `index.html`, and its parts to this directory, which must be missing or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,

    /// How long each measurement takes, for each store; without it, 3 seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Option<Duration>,

    /// How many events are in a store that is read from and appended to; without it, 94000. It is rounded to a multiple of
    /// 47, for aggregates of 13 and 34. An append measurement ends early when it has appended twice as many
    #[arg(long, value_name = "EVENTS", value_parser = bench_events)]
    pub(crate) events: Option<u64>,

    /// What the events, the ids and the order of reads are made from: the same seed gives the same ones
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Measure for moments only, to see that it works: the numbers mean nothing
    #[arg(long)]
    pub(crate) quick: bool,

    /// How to print the results
    #[arg(long, value_enum, default_value_t = ResultFormat::Table)]
    pub(crate) format: ResultFormat,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResultFormat {
    /// One JSON object, everything that was measured and under which settings
    Json,
    /// Columns to look at, one for each store
    Table,
}

fn batch_events(text: &str) -> Result<usize, String> {
    number_up_to(MAX_BATCH_EVENTS, text)
}

fn concurrency(text: &str) -> Result<usize, String> {
    number_up_to(65_536, text)
}

fn number_up_to(limit: usize, text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=limit).contains(&number) => Ok(number),
        _ => Err(format!("it has to be a number from 1 to {limit}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it has to be a number of seconds from 0.01 to 3600".to_owned()),
    }
}

fn bench_events(text: &str) -> Result<u64, String> {
    number_up_to(1_000_000_000, text).map(|number| number as u64)
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::*;

    #[test]
    fn the_definitions_fit_together() {
        Cli::command().debug_assert();
    }

    /// The help texts of the command and of each of its own, short and long, in this width.
    fn help_texts(width: usize) -> Vec<(String, String)> {
        let mut command = Cli::command().term_width(width);
        command.build();
        let mut texts = vec![(command.get_name().to_owned(), command.render_long_help().to_string())];
        for own in command.get_subcommands_mut().filter(|own| own.get_name() != "help") {
            let mut own: Command = own.clone().term_width(width);
            texts.push((own.get_name().to_owned(), own.render_help().to_string()));
            texts.push((own.get_name().to_owned(), own.render_long_help().to_string()));
        }
        texts
    }

    const INDENT: &str = "  ";

    #[test]
    fn help_is_wrapped_by_the_terminal_and_examples_are_not() {
        for width in [60, 80, 120] {
            for (name, text) in help_texts(width) {
                assert!(text.lines().all(|line| line.chars().count() <= width), "{name} at {width}:\n{text}");
                // Usage, arguments and their descriptions are clap's own.
                let Some((_, ours)) = text.split_once("-V, --version").or_else(|| text.split_once("-h, --help")) else {
                    panic!("{name} has no option for help:\n{text}")
                };
                for (line, next) in ours.lines().skip(2).zip(ours.lines().skip(3)) {
                    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(INDENT) && !line.ends_with(':');
                    let Some(word) = next.split(' ').next().filter(|_| is_prose(line) && is_prose(next)) else {
                        continue;
                    };
                    let is_ragged = line.chars().count() + 1 + word.chars().count() <= width.min(110);
                    assert!(!is_ragged, "{name} at {width} is wrapped early:\n{line}\n{next}");
                }
            }
            let all: String = help_texts(width).into_iter().map(|(_, text)| text).collect();
            for text in [EXAMPLES, COPY, APPEND, IMPORT, LOAD, BENCH] {
                for example in text.lines().filter(|line| line.starts_with(INDENT)) {
                    assert!(
                        all.lines().any(|line| line == example),
                        "{example:?} is not as it was written, at {width}"
                    );
                }
            }
        }
    }
}
