//! The command line.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use eventstore::backend::limits::MAX_BATCH_EVENTS;

use crate::times;

/// An embedded event store with interchangeable engines.
#[derive(Debug, Parser)]
#[command(name = "eventstore", version, about, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// The store: an engine and a directory, such as lmdb:./data, or the address of a server. `append` and `import` create it if it does not exist
    #[arg(
        long,
        global = true,
        display_order = 100,
        value_name = "URL",
        env = "EVENTSTORE_URL",
        hide_env_values = true, // one may have a password
        default_value = "lmdb:./eventstore-data"
    )]
    pub(crate) store: String,

    #[command(subcommand)]
    pub(crate) command: Command,

    /// The name of the command.
    #[arg(skip)]
    pub(crate) name: String,
}

/// Commands for which `--store` has no meaning.
#[cfg(feature = "sync")]
const WITHOUT_STORE: [&str; 6] = ["demo", "replica", "sync", "status", "pending", "rejected"];
#[cfg(not(feature = "sync"))]
const WITHOUT_STORE: [&str; 1] = ["demo"];

impl Cli {
    /// Parses the command line.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let matches = Cli::shown().try_get_matches()?;
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.name = matches.subcommand_name().unwrap_or_default().to_owned();
        #[cfg(feature = "serve")]
        if let (Command::Serve(args), Some((_, matches))) = (&cli.command, matches.subcommand())
            && args.stores.is_some()
            // Defaults and environment variables do not count as given on the command line.
            && matches.value_source("store") == Some(clap::parser::ValueSource::CommandLine)
        {
            let both = "--store names one store, and --stores (or EVENTSTORE_STORES) a directory of many; leave one of them out";
            return Err(Cli::command().error(clap::error::ErrorKind::ArgumentConflict, both));
        }
        Ok(cli)
    }

    /// The definition, with `--store` hidden in the help of commands for which it has no meaning.
    fn shown() -> clap::Command {
        let hidden = || clap::Arg::new("store").long("store").value_name("URL").global(true).hide(true);
        WITHOUT_STORE.iter().fold(Cli::command(), |command, name| command.mut_subcommand(name, |own| own.arg(hidden())))
    }
}

// clap wraps each line of a text separately, so a paragraph must be one line here. Examples are wrapped by hand, at 60
// columns.
const EXAMPLES: &str = "\
Examples:
  eventstore demo
  eventstore append orders.jsonl
  eventstore import events.jsonl.gz
  eventstore load --aggregate order-42
  eventstore copy --to lmdb:./copy
  eventstore backup ./backup

Results go to stdout, everything else to stderr. An error is one line, `error[code]: what happened, and what to do`. A \
command that only prints stops when its reader closes the pipe, as in `| head`; one that writes or verifies runs to its end.

Exit codes: 0 success, 1 error or damage, 2 wrong usage, 3 success but lines were skipped, 4 a replica waits for a decision, \
128 + N clean stop by signal N: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. A second signal stops at once.

A store belongs to one process at a time. If a program has it open, let it serve the store, and name its address: \
`--store http://127.0.0.1:7080`. One on PostgreSQL, `--store postgres://user@host/database?schema=name`, may be open in any \
number of processes. Commands that only read write nothing, so several can read at once, also from read-only media.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a guided tour in a temporary directory, which is deleted at the end
    Demo {
        /// What it shows
        #[arg(value_enum, default_value_t = Tour::Store)]
        tour: Tour,
    },
    /// Append events from JSON lines, and print the version and revision of each one once it is durable
    #[command(after_help = APPEND)]
    Append(AppendArgs),
    /// Import many events from JSON, CSV or other programs' files. Idempotent: events that are stored already are only
    /// counted
    #[command(after_help = IMPORT)]
    Import(ImportArgs),
    /// Print events as JSON lines or as a table
    #[command(after_help = LOAD)]
    Load(LoadArgs),
    /// List the aggregates, one JSON object per line: id, revision, and version of the newest event
    #[command(after_help = AGGREGATES)]
    Aggregates {
        /// Only aggregates whose ids start with this prefix
        #[arg(long, value_name = "PREFIX", allow_hyphen_values = true)]
        prefix: Option<String>,
    },
    /// Print the event with this id
    Get {
        /// The event's id
        id: String,
    },
    /// Print the version of the newest event, which is also the number of events
    Latest(LatestArgs),
    /// Print the store's statistics, one `name: value` per line
    Stats {
        /// Print one JSON object, with numbers as JSON numbers
        #[arg(long)]
        json: bool,
    },
    /// Print a hash over all events: two stores with the same events in the same order have the same hash
    Digest {
        /// Only the events up to this version, to compare with a store that ends there. An error if the store ends before it
        #[arg(long, value_name = "VERSION")]
        until: Option<String>,
    },
    /// Copy every event to another store, with any engine, keeping versions, revisions and times
    #[command(after_help = COPY)]
    Copy {
        /// The target: a new or empty store, or the target of an earlier copy, which is continued
        #[arg(long, value_name = "URL")]
        to: String,
    },
    /// Read everything and report what is wrong: damaged records, gaps, index entries that do not match the events
    #[command(after_help = "Exit code: 0 if the store is sound, 1 if damage was found.")]
    Verify,
    /// Copy the store to a directory; the backup can be opened like any store. One of PostgreSQL becomes an LMDB store
    #[command(after_help = "Data of an earlier backup is not read again. To check everything, verify the backup:\n  \
                            eventstore --store lmdb:./backup verify")]
    Backup {
        /// The target: a missing or empty directory, or an earlier backup of the store, to which only new data is copied
        directory: PathBuf,
    },
    /// Create a new store from a backup, and verify it. `--store` names the new store; the backup is not changed
    #[command(after_help = "Example:\n  eventstore --store lmdb:./restored restore ./backup")]
    Restore {
        /// The backup
        directory: PathBuf,
    },
    /// Compress the remaining log segments, and free unused space of the engine
    Gc {
        /// Do everything that makes the files smaller, even rewrite them. This can take as long as reading and writing the
        /// whole store, and temporarily as much disk space again
        #[arg(long)]
        full: bool,
    },
    /// Measure and compare engines on this machine, about a minute each. Uses temporary stores and deletes them at the end;
    /// `--store` names an engine and, if the location matters, an empty directory
    #[command(after_help = BENCH)]
    Bench(BenchArgs),
    /// Print the SQL that creates the store on PostgreSQL, for users who may not create it themselves
    #[cfg(feature = "postgres")]
    #[command(
        after_help = "Example:\n  eventstore --store postgres://app@db/shop?schema=orders schema | psql -h db shop"
    )]
    Schema,
    /// Serve the store over HTTP to other programs, to this command in another terminal, and to a browser
    #[cfg(feature = "serve")]
    #[command(after_help = SERVE)]
    Serve(ServeArgs),
    /// Create a replica: a directory in which you work offline, and that syncs with a hub
    #[cfg(feature = "sync")]
    #[command(subcommand, after_help = REPLICA)]
    Replica(ReplicaCommand),
    /// Sync a replica with its hub: pull what is new, push what is pending
    #[cfg(feature = "sync")]
    #[command(after_help = SYNC)]
    Sync(SyncArgs),
    /// Print the state of a replica, one `name: value` per line
    #[cfg(feature = "sync")]
    Status {
        /// The replica's directory
        directory: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the events of a replica that are not confirmed yet, as JSON lines
    #[cfg(feature = "sync")]
    Pending {
        /// The replica's directory
        directory: PathBuf,
    },
    /// Print the rejected batches of a replica with their reasons, as JSON lines
    #[cfg(feature = "sync")]
    Rejected {
        /// The replica's directory
        directory: PathBuf,
        /// Delete this batch, so that its ids can be used again: its number, or the place of one of its events, such as 4 or 4.0
        #[arg(long, value_name = "BATCH", value_parser = batch)]
        delete: Option<u64>,
    },
    /// Rebuild the index and damaged log footers from the log, and accept a log that has lost its end. Files that are
    /// replaced are moved aside
    Repair,
}

#[cfg(feature = "sync")]
const REPLICA: &str = "\
A replica belongs to one process at a time, as long as that runs: while `sync --live` or `load --follow` has it open, the other \
commands on it fail with error[locked]. `append` and `load` take it as --store replica:DIR; the other commands on stores do not.

Example:
  eventstore replica init notes --hub http://127.0.0.1:7080
  eventstore --store replica:notes append events.jsonl
  eventstore sync notes
  eventstore --store replica:notes load";

#[cfg(feature = "sync")]
const SYNC: &str = "\
Appending works without the hub: new events are durable and pending, and syncing confirms them. A batch that was decided \
without knowing what others did meanwhile is a conflict: --resolve says what to do with it. A batch with the id of another event \
of the hub is a conflict, too: keep-both gives the event a new id, and prints it on stderr.

A replica belongs to one process at a time: while --live runs, the other commands on it fail with error[locked]. A program that \
appends while it syncs does both in one process, with the library.

Exit codes: 0 everything is synced, 4 a batch waits for a decision.

Examples:
  eventstore sync notes
  eventstore sync notes --live
  eventstore sync notes --resolve keep-both";

/// The commands for replicas.
#[cfg(feature = "sync")]
#[derive(Debug, Subcommand)]
pub(crate) enum ReplicaCommand {
    /// Create a replica in a missing or empty directory. The hub need not be reachable
    Init {
        /// The directory
        directory: PathBuf,
        /// The store to sync with: one that is served, http://host:7080, https://host/stores/notes or unix:PATH; one on
        /// PostgreSQL, postgres://user@host/db?schema=notes; a server of Go Sync Kit, gosync+http://host/sync; or one in a directory,
        /// lmdb:DIR
        #[arg(long, value_name = "URL")]
        hub: String,
        /// The engine of the confirmed events
        #[arg(long, value_name = "ENGINE")]
        engine: Option<String>,
        /// Only follow the hub: nothing can be appended
        #[arg(long)]
        read_only: bool,
    },
}

/// How to sync a replica.
#[cfg(feature = "sync")]
#[derive(Args, Debug)]
pub(crate) struct SyncArgs {
    /// The replica's directory
    pub(crate) directory: PathBuf,
    /// Keep running: follow the hub, push new events at once, and retry while the hub cannot be reached
    #[arg(long)]
    pub(crate) live: bool,
    /// What to do with a conflicting batch
    #[arg(long, value_enum, default_value_t = Resolve::Stop)]
    pub(crate) resolve: Resolve,
    /// Push batches past one that waits for a decision, if they share no aggregate with it
    #[arg(long)]
    pub(crate) skip_waiting: bool,
    /// Accept the hub's history if it is another one. Own events become pending again, and what was confirmed is kept in DIR/aside
    #[arg(long)]
    pub(crate) accept_history: bool,
    /// Sync with this hub, and keep it for later syncs if the replica's history is found there. See `replica init --help` for what
    /// it can be
    #[arg(long, value_name = "URL")]
    pub(crate) hub: Option<String>,
}

/// What to do with a conflicting batch.
#[cfg(feature = "sync")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Resolve {
    /// Let it wait, and stop syncing there
    Stop,
    /// Append it anyway; an event whose id is taken gets a new id
    KeepBoth,
    /// Reject it; it stays readable
    Reject,
    /// Drop it; nothing of it is kept
    Drop,
}

/// The tours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tour {
    /// A store: appends, loads, conditions, retries, a subscription
    Store,
    /// A hub and two replicas, one of which goes offline: a conflict, its resolution, and equal digests at the end
    #[cfg(feature = "sync")]
    Sync,
}

const COPY: &str = "\
The digests of both stores are compared at the end. After an error or a signal, run the same command again to continue.

Examples:
  eventstore --store lmdb:./data copy --to rocksdb:./data2
  eventstore --store sled:./old copy \\
      --to 'lmdb:./new?map_size=4GiB'";

const APPEND: &str = "\
One event per line:
  {\"id\":\"o1\",\"type\":\"OrderPlaced\",\"aggregate_id\":\"order-42\"}
Optional fields:
  \"data\":{\"total\":12}          any JSON, kept byte for byte
  \"data_base64\":\"/wA=\"         instead of data, if not JSON
  \"metadata\":{\"source\":\"web\"}   a JSON object

`version`, `revision` and `recorded_at`, as `load` prints them, are ignored: the event is recorded now. `import` keeps the times.

When an event is durable, its position is printed: {\"id\":\"o1\",\"version\":1,\"revision\":1}. Appending the same event again \
prints the same position, so retry every event without an answer. If the reader closes the pipe, the command continues; if \
the answers cannot be written, it stops.

Examples:
  eventstore append orders.jsonl
  eventstore append --expect revision=3 change.jsonl
  tail -f new-orders.jsonl |
      eventstore append --concurrency 64 --timeout 500ms";

#[derive(Args, Debug)]
pub(crate) struct AppendArgs {
    /// The events, one JSON object per line, plain or compressed; `-` is stdin
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,

    /// Append this many events at a time, all or none, and at most 64 MiB; the last batch may be smaller
    #[arg(long, value_name = "EVENTS", default_value_t = 1, value_parser = batch_events)]
    pub(crate) batch: usize,

    /// Keep this many appends in flight. They share disk syncs and are answered as they become durable. Only with 1 is the
    /// order of the input guaranteed
    #[arg(long, value_name = "APPENDS", default_value_t = 1, value_parser = concurrency)]
    pub(crate) concurrency: usize,

    /// The condition of each append: any; none, the aggregate has no events; exists, it has some; revision=N, the
    /// aggregate's newest event has this revision; latest=N, the store's newest event has this version
    #[arg(long, value_name = "CONDITION", default_value = "any", allow_hyphen_values = true)]
    pub(crate) expect: String,

    /// When an event counts as durable: sync, it survives a power cut; buffered, it survives a kill of the process. The
    /// default is the store's setting, which is sync unless its URL says otherwise
    #[arg(long, value_name = "LEVEL")]
    pub(crate) durability: Option<String>,

    /// The time limit of each append, and of opening a store that is on a server, such as 500ms or 2s; no limit by default
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

const IMPORT: &str = "\
Events are stored in the order of the input, so an import that stops has stored a prefix of it. After an error or a signal, \
import the same input again: it continues where it stopped, because events are recognised by their ids. Events that are stored \
already do not change and keep their times.

FILE may be plain, or compressed with gzip, zstd, xz or bzip2. It has events as `load` prints them, one per line or in an \
array. With --map it has the records of other programs: JSON, or CSV with the column names in the first row. Each JSON object \
becomes an event; so does each CSV row, as an object of strings:

  --map cloudevents     CloudEvents; the aggregate is the
                        subject, if there is one, or the
                        source
  --map kurrentdb       KurrentDB, EventStoreDB: exported
                        events, or pages of an Atom feed
                        with embed=body, the oldest page
                        first; the aggregate is the stream
  --map gharchive       GH Archive, from 2015 on; the
                        aggregate is the repository
  --map FIELD=EXPR,...  any other format, or a change to
                        one of these:
                        --map cloudevents,id=.id

FIELD is id, type, aggregate_id, data, metadata or recorded_at; version and revision are for --check-places. Without data=, \
the data is the whole record. If a record has its events in an array, each=.PATH or each=reverse(.PATH) names the array. EXPR is

  .a.b   .\"a key\"[0]   the value there, data byte for
                        byte; . is the whole record
  \"text\"   {\"a\":1}      a constant
  .a+\"-\"+.b             strings and numbers, joined
  .a//.b                the first that exists, not null
  sha256(.)             a hash of the value: an id that is
                        the same when the record is imported
                        again. Of identical records only one
                        becomes an event
  number()              the record's number in the input, to
                        keep identical records apart:
                        sha256(.)+\"-\"+number()
  rest()                as metadata or data: an object of
                        all that no other field takes whole.
                        Without rest() it is dropped
  text(.a)  base64(.a)  the string's characters; the bytes
                        that they encode in Base64
  json(.a)              the string's characters if they are
                        an object or an array; otherwise the
                        value as it is
  unix(.a) unix_ms(.a)  a time in seconds or milliseconds
                        since 1970
  next(.a)              the number plus one

With --skip-invalid, a record that is not a valid event, or whose id another event has, is written to a file:
  {\"line\":3,\"error\":\"…\",\"input\":\"{\\\"id\\\":1,}\"}
The import continues, and the exit code is 3. Correct each `input` in that file, and import the file with --retry-skipped and \
otherwise the same options. If the input cannot be read any further, the import still fails.

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
    /// The events, as `load` prints them or as --map describes them; `-` is stdin
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// How to map the records of another program to events; see below. May be repeated: the last one wins
    #[arg(long, value_name = "MAPPING")]
    pub(crate) map: Vec<String>,

    /// The format of the input
    #[arg(long, value_enum, default_value_t = InputFormat::Auto)]
    pub(crate) format: InputFormat,

    /// Check the whole input, and print the first three events as they would be stored. Nothing is stored and no store is
    /// created, so events that the store would refuse are not detected
    #[arg(long, conflicts_with = "check_places")]
    pub(crate) dry_run: bool,

    /// Whether events keep the `recorded_at` of the input or get the current time. Events without `recorded_at` get the
    /// current time
    #[arg(long, value_enum, value_name = "TIMES", default_value_t = KeepTimes::Keep)]
    pub(crate) recorded_at: KeepTimes,

    /// Stop before the first event whose `version` or `revision` in the input differs from the one in the store. Slower:
    /// each event first looks up its id and its aggregate
    #[arg(long, conflicts_with = "skip_invalid")]
    pub(crate) check_places: bool,

    /// Skip records that are not valid events, and events that the store refuses; write them to this file, which must be
    /// missing or empty
    #[arg(long, value_name = "FILE")]
    pub(crate) skip_invalid: Option<PathBuf>,

    /// The input is a corrected file of --skip-invalid
    #[arg(long)]
    pub(crate) retry_skipped: bool,
}

/// The format of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputFormat {
    /// Detect the format
    Auto,
    /// JSON: one object a line, an array, or objects over several lines
    Json,
    /// Rows separated by commas, semicolons, tabs or bars, with column names in the first row
    Csv,
}

/// What to do with the times in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeepTimes {
    /// Keep the times of the input
    Keep,
    /// Use the current time; the summary counts the events whose time was dropped
    Now,
}

const LOAD: &str = "\
An event is printed if it matches all filters; the limit counts printed events. Versions and aggregates are indexed; filters \
by type, prefix or time scan the events. Recording times are not necessarily in order.

On a replica, --store replica:DIR, --follow keeps it from every other process, as `sync --live` does; without --follow it is \
free again at the end.

Examples:
  New events since version 1200:
    eventstore load --since 1200
  New events since a cursor; fails if a backup was restored:
    eventstore latest --cursor > seen
    eventstore load --since \"$(cat seen)\"
  One order's events, and only those after revision 7:
    eventstore load --aggregate order-42
    eventstore load --aggregate order-42 --since-revision 7
  The newest ten as a table:
    eventstore load --backward --limit 10 --format table
  Wait until there are 100 events:
    eventstore load --follow --limit 100
  By type and aggregate prefix:
    eventstore load --type Paid --aggregate-prefix order-
  Events recorded since a date:
    eventstore load --recorded-since 2025-01-01";

#[cfg(feature = "serve")]
const SERVE: &str = "\
Others open the address as a store: `eventstore --store http://127.0.0.1:7080 load --follow`, or eventstore::open(..) in a program. \
Browsers get a page. On a signal, the server ends streams, finishes accepted appends and closes the store.

On SIGHUP, the server reads the token file and the certificate files again. A file that cannot be read changes nothing and is \
reported. Streams and sessions of removed tokens end. Without such files, SIGHUP ends the server, like every command.

Without --token-file, everybody who can reach the address may read and write: on this machine, all its users.

--token-file has one token per line: TOKEN RIGHTS STORES. RIGHTS are read, write, admin (verify, gc, backup), each of which \
includes those before it, and create, joined by commas; STORES are names, `tenant-*`, or * for all:
  6fe1c9a07b0f4f0e9a55b7e2d3c41a90  read          *
  1b6fd9a0e2a74c51a3c0a4f1c5f0b3d7  write,create  tenant-*

Examples:
  eventstore serve
  eventstore --store lmdb:./data serve --read-only
  eventstore serve --log requests
  eventstore serve --listen unix:/run/app/store.sock
  eventstore serve --stores ./tenants \\
      --listen 0.0.0.0:7080 --token-file tokens \\
      --tls-cert cert.pem --tls-key key.pem";

#[cfg(feature = "serve")]
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Serve the stores in this directory by their names, at /stores/NAME, instead of one store: DIR, or an engine and
    /// options as in a URL, such as fjall:./tenants?compression=zstd
    #[arg(long, value_name = "DIR", env = "EVENTSTORE_STORES")]
    pub(crate) stores: Option<String>,

    /// The address to listen on: an IP address or localhost with a port, or unix: and a path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7080")]
    pub(crate) listen: eventstore_server::Address,

    /// Accept only requests with a token from this file
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Allow access without a token on an address that other machines can reach
    #[arg(long)]
    pub(crate) insecure: bool,

    /// The certificate for https, as PEM: the server's own first, then the chain
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of the certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Open the store read-only and refuse appends
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Log to stderr. A request is logged by its path, without its query and its headers: no token is shown
    #[arg(long, value_name = "WHAT", value_enum)]
    pub(crate) log: Option<crate::request_log::Log>,

    /// With --stores: the most stores that are open at the same time
    #[arg(long, value_name = "STORES", default_value_t = 100, requires = "stores")]
    pub(crate) most_open: usize,

    /// With --stores: how long an unused store stays open
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration, requires = "stores")]
    pub(crate) close_idle: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct LatestArgs {
    /// Print a cursor instead, such as 1987-9f86d081: the version and the first digits of the digest at that version
    #[arg(long)]
    pub(crate) cursor: bool,
}

#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// Only events after this version or cursor (see `latest --cursor`); 0 is before all events. A cursor of another history
    /// is an error
    #[arg(long, value_name = "VERSION|CURSOR", default_value = "0", allow_hyphen_values = true)]
    pub(crate) since: String,

    /// Only events of this aggregate
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub(crate) aggregate: Option<String>,

    /// Only events with a revision greater than this; 0 is before all events
    #[arg(long, value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    pub(crate) since_revision: u64,

    /// Only events of aggregates whose ids start with this prefix
    #[arg(long, value_name = "PREFIX", allow_hyphen_values = true, conflicts_with = "aggregate")]
    pub(crate) aggregate_prefix: Option<String>,

    /// Only events of this type; may be repeated to select several types
    #[arg(long = "type", value_name = "TYPE", allow_hyphen_values = true)]
    pub(crate) types: Vec<String>,

    /// Only events recorded at this time or later: 2025-01-31T12:30:00Z, with any UTC offset, or a date in UTC
    #[arg(long, value_name = "TIME", value_parser = times::parse_or_date)]
    pub(crate) recorded_since: Option<SystemTime>,

    /// Only events recorded before this time
    #[arg(long, value_name = "TIME", value_parser = times::parse_or_date)]
    pub(crate) recorded_until: Option<SystemTime>,

    /// Print at most this many events; no limit by default
    #[arg(long, value_name = "EVENTS")]
    pub(crate) limit: Option<u64>,

    /// Newest first
    #[arg(long, conflicts_with = "follow")]
    pub(crate) backward: bool,

    /// Do not stop at the newest event: wait for more, until the limit or a signal. Other processes append only if the store
    /// is served (see `serve`)
    #[arg(long)]
    pub(crate) follow: bool,

    /// How to print the events
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    pub(crate) format: Format,
}

const AGGREGATES: &str = "\
Sorted by id, byte by byte. Only the index is read, and only the entries of matching aggregates.

Example:
  eventstore aggregates --prefix order-";

/// The format of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object per line, with all fields; `append` and `import` can read it
    Jsonl,
    /// Columns for reading, with long data cut off
    Table,
}

const BENCH: &str = "\
The engines take turns within each measurement, so that other load on the machine affects all of them alike. Every append is \
durable (sync) unless the measurement is named buffered, and every result is checked.

A URL without a directory, such as lmdb: or rocksdb:?block_cache=1GiB, measures in the working directory's file system.

Examples:
  eventstore bench --store lmdb:
  eventstore bench --store lmdb: --against rocksdb: \\
      --against sled: --report ./report
  eventstore bench --store rocksdb: --format json \\
      --against 'rocksdb:?table_compression=zstd'";

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// Another engine, or other options, to compare with `--store`; may be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) against: Vec<String>,

    /// Write a report with plots (`index.html` and its files) to this directory, which must be missing or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,

    /// The duration of each measurement for each store; 3 seconds by default
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Option<Duration>,

    /// The number of events in the stores that are read and appended to; 94000 by default. It is rounded to a multiple of 47,
    /// for aggregates of 13 and 34 events. An append measurement ends early after twice as many appends
    #[arg(long, value_name = "EVENTS", value_parser = bench_events)]
    pub(crate) events: Option<u64>,

    /// The seed for events, ids and the order of reads: the same seed gives the same data
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Measure only briefly, to test that it works: the numbers are meaningless
    #[arg(long)]
    pub(crate) quick: bool,

    /// How to print the results
    #[arg(long, value_enum, default_value_t = ResultFormat::Table)]
    pub(crate) format: ResultFormat,
}

/// The format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResultFormat {
    /// One JSON object with all results and settings
    Json,
    /// A table with one column per store
    Table,
}

/// Parses the number of a batch, or the place of one of its events.
#[cfg(feature = "sync")]
fn batch(text: &str) -> Result<u64, String> {
    let (number, event) = text.split_once('.').unwrap_or((text, "0"));
    match (number.parse(), event.parse::<u32>()) {
        (Ok(number), Ok(_)) => Ok(number),
        _ => Err("it must be the number of a batch, such as 4, or the place of an event, such as 4.0".to_owned()),
    }
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
        _ => Err(format!("it must be a number from 1 to {limit}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it must be a number of seconds from 0.01 to 3600".to_owned()),
    }
}

fn bench_events(text: &str) -> Result<u64, String> {
    number_up_to(1_000_000_000, text).map(|number| number as u64)
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn the_definitions_fit_together() {
        Cli::shown().debug_assert();
    }

    #[test]
    fn the_store_is_shown_where_it_means_something() {
        for (name, text) in help_texts(100) {
            assert_eq!(text.contains("--store <URL>"), !WITHOUT_STORE.contains(&name.as_str()), "{name}:\n{text}");
        }
    }

    #[cfg(feature = "sync")]
    #[test]
    fn a_batch_is_named_by_its_number_or_an_event() {
        assert_eq!([batch("4"), batch("4.0"), batch("4.17")], [Ok(4), Ok(4), Ok(4)]);
        for text in ["", ".", "4.", ".0", "4.0.0", "-4", "4.x"] {
            batch(text).expect_err(text);
        }
    }

    /// The short and long help texts of the command and its subcommands, at this width.
    fn help_texts(width: usize) -> Vec<(String, String)> {
        let mut command = Cli::shown().term_width(width);
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
                // The usage, the arguments and their descriptions are formatted by clap.
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
            let texts = [EXAMPLES, COPY, APPEND, IMPORT, LOAD, BENCH];
            #[cfg(feature = "serve")]
            let texts = texts.into_iter().chain([SERVE]);
            #[cfg(feature = "sync")]
            let texts = texts.into_iter().chain([REPLICA, SYNC]);
            for text in texts {
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
