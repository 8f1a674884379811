//! PostgreSQL servers of a test's own, in temporary directories, from the programs that the system has.
//!
//! The servers run as a user that is not root, listen on loopback, and keep what they confirm (`fsync = on`). They end with the
//! [`Cluster`].

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

/// The environment variable with the URL of a server to be used in place of a cluster.
pub const URL_VARIABLE: &str = "EVENTSTORE_POSTGRES_URL";

/// Why there is no server.
#[derive(Debug)]
pub enum Error {
    /// PostgreSQL is not installed.
    NotInstalled,
    /// One of its programs failed.
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotInstalled => f.write_str("PostgreSQL's initdb and pg_ctl are not installed"),
            Error::Failed(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Failed(error.to_string())
    }
}

/// A server, and its files.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    directory: TempDir,
    port: u16,
}

/// Where the programs are, and as whom they run.
#[derive(Clone, Debug)]
struct Programs {
    directory: PathBuf,
    /// The user and its group, if this process may not run a server itself.
    user: Option<(u32, u32)>,
}

impl Programs {
    fn find() -> Result<Self, Error> {
        let mut versions: Vec<PathBuf> = match std::fs::read_dir("/usr/lib/postgresql") {
            Ok(entries) => entries.flatten().map(|entry| entry.path().join("bin")).collect(),
            Err(_) => Vec::new(),
        };
        versions.sort_by_key(|path| {
            let name = path.parent().and_then(Path::file_name).and_then(OsStr::to_str);
            std::cmp::Reverse(name.and_then(|name| name.parse::<u32>().ok()))
        });
        let path = std::env::var_os("PATH").unwrap_or_default();
        versions.extend(std::env::split_paths(&path));
        let has_all =
            |directory: &PathBuf| ["initdb", "pg_ctl", "postgres"].iter().all(|name| directory.join(name).is_file());
        let directory = versions.into_iter().find(has_all).ok_or(Error::NotInstalled)?;
        let is_root = std::fs::metadata("/proc/self")?.uid() == 0;
        let user = match is_root {
            false => None,
            true => Some(user("postgres").or_else(|| user("nobody")).ok_or_else(|| {
                Error::Failed("neither the user postgres nor nobody exists, and root may not run a server".to_owned())
            })?),
        };
        Ok(Programs { directory, user })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command.current_dir("/").env("LC_ALL", "C").env_remove("PGPASSWORD").stdin(Stdio::null());
        command
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some((user, group)) => chown(path, Some(user), Some(group)),
            None => Ok(()),
        }
    }
}

/// The numbers of a user and its group.
fn user(name: &str) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = users
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.collect()))?;
    Some((fields.get(1)?.parse().ok()?, fields.get(2)?.parse().ok()?))
}

fn run(command: &mut Command) -> Result<Output, Error> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(output),
        false => Err(Error::Failed(format!(
            "{} failed: {}{}",
            command.get_program().display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}

/// A port on 127.0.0.1 that is free. It is none of those that the system gives to whoever asks for any, nor one that this
/// process was given before: it stays free until a server uses it, and while that server is restarted.
///
/// # Errors
///
/// If none is found.
pub fn free_port() -> io::Result<u16> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 18_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(101);
    for _ in 0..COUNT {
        let next = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + next % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

impl Cluster {
    /// A new server with these settings, such as `max_connections = 20`.
    ///
    /// # Errors
    ///
    /// If PostgreSQL is not installed, or a server does not start.
    pub fn start(settings: &[&str]) -> Result<Self, Error> {
        Self::start_below(&std::env::temp_dir(), settings)
    }

    /// The same with its files below a directory.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start).
    pub fn start_below(parent: &Path, settings: &[&str]) -> Result<Self, Error> {
        let programs = Programs::find()?;
        let cluster = Cluster { directory: Self::directory(&programs, parent)?, programs, port: free_port()? };
        let mut initdb = cluster.programs.command("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--data-checksums", "-D"]);
        run(initdb.arg(cluster.data()))?;
        cluster.configure(settings)?;
        cluster.restart()?;
        Ok(cluster)
    }

    /// A new server, or `None` with a line on stderr if PostgreSQL is not installed: for tests that are left out then.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start.
    #[must_use]
    pub fn start_if_installed(settings: &[&str]) -> Option<Self> {
        match Self::start(settings) {
            Ok(cluster) => Some(cluster),
            Err(Error::NotInstalled) => {
                #[expect(clippy::print_stderr, reason = "whoever reads the test's output is to know")]
                {
                    eprintln!("left out: {}", Error::NotInstalled);
                }
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn directory(programs: &Programs, parent: &Path) -> Result<TempDir, Error> {
        let directory = tempfile::Builder::new().prefix("eventstore-postgres-").tempdir_in(parent)?;
        programs.own(directory.path())?;
        Ok(directory)
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Adds settings, which a restart brings into effect.
    ///
    /// # Errors
    ///
    /// If the file of settings cannot be written.
    pub fn configure(&self, settings: &[&str]) -> Result<(), Error> {
        let path = self.data().join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&path).unwrap_or_default();
        for setting in settings {
            text.push_str(setting);
            text.push('\n');
        }
        std::fs::write(&path, text)?;
        Ok(self.programs.own(&path)?)
    }

    /// Starts the server if it does not run, and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub fn restart(&self) -> Result<(), Error> {
        let listen = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={}",
            self.port,
            self.directory.path().display()
        );
        let log = self.directory.path().join("log");
        let mut command = self.programs.command("pg_ctl");
        command.args(["start", "-w", "-t", "120", "-s", "-o", &listen, "-l"]).arg(&log).arg("-D").arg(self.data());
        // Nobody reads what the server inherits.
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::Failed(format!(
                "the server did not start: {}",
                std::fs::read_to_string(log).unwrap_or_default()
            ))),
        }
    }

    /// Stops the server as `pg_ctl stop -m MODE` does: `smart`, `fast` or `immediate`.
    ///
    /// # Errors
    ///
    /// If it does not stop.
    pub fn stop(&self, mode: &str) -> Result<(), Error> {
        let mut command = self.programs.command("pg_ctl");
        run(command.args(["stop", "-w", "-s", "-m", mode, "-D"]).arg(self.data())).map(drop)
    }

    /// Kills all processes of the server with SIGKILL, and waits until they are gone.
    ///
    /// # Errors
    ///
    /// If the server's process is not known.
    pub fn kill(&self) -> Result<(), Error> {
        let postmaster = self.postmaster()?;
        let signal = |signal: &str, process: u32| {
            let _ = Command::new("kill").args([signal, &process.to_string()]).stderr(Stdio::null()).status();
        };
        // So that it starts no others meanwhile.
        signal("-STOP", postmaster);
        while !matches!(state(postmaster).as_deref(), None | Some("T" | "Z")) {
            std::thread::yield_now();
        }
        let mut processes = children(postmaster);
        processes.push(postmaster);
        processes.iter().rev().for_each(|process| signal("-KILL", *process));
        while processes.iter().any(|process| is_alive(*process)) {
            std::thread::yield_now();
        }
        // A new server that finds the old one's number in use, by somebody else or by a process that nobody has waited for, does
        // not start.
        let lock = self.directory.path().join(format!(".s.PGSQL.{}.lock", self.port));
        for file in [self.data().join("postmaster.pid"), lock] {
            let _ = std::fs::remove_file(file); // or it is not there
        }
        Ok(())
    }

    /// The process that starts all others.
    ///
    /// # Errors
    ///
    /// If the server does not run.
    pub fn postmaster(&self) -> Result<u32, Error> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid"))?;
        let first = text.lines().next().and_then(|line| line.trim().parse().ok());
        first.ok_or_else(|| Error::Failed("postmaster.pid has no number".to_owned()))
    }

    /// The processes that serve one connection each.
    ///
    /// # Errors
    ///
    /// If the server does not run.
    pub fn backends(&self) -> Result<Vec<u32>, Error> {
        let is_backend = |process: &u32| {
            let title = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&title).contains("127.0.0.1(")
        };
        Ok(children(self.postmaster()?).into_iter().filter(is_backend).collect())
    }

    /// A standby that copies this server from now on, named `name` to it.
    ///
    /// # Errors
    ///
    /// If the copy fails, or the standby does not start.
    pub fn standby(&self, name: &str) -> Result<Self, Error> {
        let programs = self.programs.clone();
        let directory = Self::directory(&programs, &std::env::temp_dir())?;
        let standby = Cluster { directory, programs, port: free_port()? };
        standby.become_standby(self, name)?;
        Ok(standby)
    }

    /// Makes this server, which does not run, a standby that copies another from now on, named `name` to it. What it had is
    /// removed.
    ///
    /// # Errors
    ///
    /// If the copy fails, or the standby does not start.
    pub fn become_standby(&self, primary: &Cluster, name: &str) -> Result<(), Error> {
        let _ = std::fs::remove_dir_all(self.data()); // or there was nothing
        let mut command = self.programs.command("pg_basebackup");
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-X", "stream", "-c", "fast", "--no-sync", "-p"]);
        run(command.arg(primary.port.to_string()).arg("-D").arg(self.data()))?;
        self.follow(primary, name)?;
        self.restart()
    }

    fn follow(&self, primary: &Cluster, name: &str) -> Result<(), Error> {
        let signal = self.data().join("standby.signal");
        std::fs::write(&signal, "")?;
        self.programs.own(&signal)?;
        let connection =
            format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres application_name={name}'", primary.port);
        self.configure(&[&connection, "hot_standby = on", "recovery_target_timeline = 'latest'"])
    }

    /// Makes a standby a primary, and waits until it is one.
    ///
    /// # Errors
    ///
    /// If it does not become one.
    pub fn promote(&self) -> Result<(), Error> {
        let mut command = self.programs.command("pg_ctl");
        run(command.args(["promote", "-w", "-s", "-t", "120", "-D"]).arg(self.data())).map(drop)
    }

    /// Gives a directory to the user that the server runs as.
    ///
    /// # Errors
    ///
    /// If this process may not.
    pub fn own(&self, directory: &Path) -> io::Result<()> {
        self.programs.own(directory)
    }

    /// Begins a transaction with this statement, and keeps it open until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// If the statement fails.
    pub fn hold(&self, text: &str) -> Result<Held, Error> {
        let mut command = self.psql();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut session = command.spawn()?;
        let (mut asks, answers) = (session.stdin.take(), session.stdout.take());
        if let Some(asks) = &mut asks {
            writeln!(asks, "BEGIN; {text}; SELECT 'held';")?;
            asks.flush()?;
        }
        let mut lines = BufReader::new(answers.ok_or(Error::NotInstalled)?).lines();
        match lines.any(|line| line.is_ok_and(|line| line == "held")) {
            true => Ok(Held { session, _asks: asks }),
            false => Err(Error::Failed(format!("{text} failed"))),
        }
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of its Unix socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.directory.path()
    }

    /// The URL of its database `postgres`, of which the user is the owner.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn psql(&self) -> Command {
        let mut command = self.programs.command("psql");
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-d",
            "postgres",
        ]);
        command.args(["-p", &self.port.to_string()]);
        command
    }

    /// Runs SQL with `psql`, and returns what it prints: one line for each row, `|` between the columns.
    ///
    /// # Errors
    ///
    /// If a statement fails.
    pub fn sql(&self, text: &str) -> Result<String, Error> {
        let output = run(self.psql().args(["-c", text]))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

/// A transaction that is open, until it is dropped.
#[derive(Debug)]
pub struct Held {
    session: Child,
    /// It ends with its input.
    _asks: Option<ChildStdin>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.session.kill();
        let _ = self.session.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.kill(); // or it does not run
    }
}

/// The processes that this one has started.
fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let is_child = |process: &u32| stat(*process, 1).and_then(|parent| parent.parse().ok()) == Some(parent);
    entries.flatten().filter_map(number).filter(is_child).collect()
}

/// Whether a process runs. One that nobody has waited for does not.
fn is_alive(process: u32) -> bool {
    state(process).is_some_and(|state| state != "Z")
}

/// The state of a process, such as `R`; `None` if there is no such process.
fn state(process: u32) -> Option<String> {
    stat(process, 0)
}

/// A field of `/proc/PID/stat`, counted from behind the name of the program.
fn stat(process: u32, field: usize) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may have anything in it, even parentheses.
    let (_, after_name) = status.rsplit_once(')')?;
    after_name.split_whitespace().nth(field).map(str::to_owned)
}
