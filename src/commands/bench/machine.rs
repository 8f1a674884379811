//! The machine: what the system reports about itself, and the time of a sync of its disk.
//!
//! What a system does not report is `None`; none of it is required.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::measure::{Percentiles, Times};

/// The machine and its system.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processor: Option<String>,
    /// The number of threads that can run at once.
    pub(super) cores: usize,
    pub(super) memory_bytes: Option<u64>,
    pub(super) system: String,
    pub(super) kernel: Option<String>,
}

impl Machine {
    pub(super) fn look() -> Self {
        Machine {
            processor: processor(),
            cores: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            memory_bytes: kibibytes("/proc/meminfo", "MemTotal"),
            system: system_name().unwrap_or_else(|| std::env::consts::OS.to_owned()),
            kernel: kernel(),
        }
    }
}

/// The peak memory of this process in bytes.
pub(super) fn peak_memory() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM")
}

/// The disk of a store's files.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Disk {
    pub(super) file_system: Option<String>,
    /// Whether files are only in memory, so that syncs cost nothing.
    pub(super) is_in_memory: bool,
    /// The times of an append of [`SYNCED_BYTES`] and its `fdatasync`, in microseconds.
    pub(super) fdatasync_us: Option<Percentiles>,
}

/// The size of an append whose sync is timed, about that of an event.
pub(super) const SYNCED_BYTES: usize = 400;
/// Enough for a median.
const SYNCS: usize = 200;

impl Disk {
    /// Measures for about `time` at most.
    pub(super) fn measure(directory: &Path, time: Duration) -> io::Result<Self> {
        let file_system = file_system(directory);
        let is_in_memory = matches!(file_system.as_deref(), Some("tmpfs" | "ramfs"));
        Ok(Disk { file_system, is_in_memory, fdatasync_us: syncs(directory, time)?.percentiles() })
    }
}

fn syncs(directory: &Path, time: Duration) -> io::Result<Times> {
    let path = directory.join("synced");
    let mut file = File::create(&path)?;
    let mut times = Times::default();
    let all = Instant::now();
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&[b'x'; SYNCED_BYTES])?;
        file.sync_data()?;
        times.add(began.elapsed());
        if all.elapsed() > time {
            break;
        }
    }
    drop(file);
    fs::remove_file(path)?;
    Ok(times)
}

fn processor() -> Option<String> {
    match std::env::consts::OS {
        "linux" => value(&fs::read_to_string("/proc/cpuinfo").ok()?, "model name").map(str::to_owned),
        "macos" => output_of("sysctl", &["-n", "machdep.cpu.brand_string"]),
        _ => std::env::var("PROCESSOR_IDENTIFIER").ok(),
    }
}

fn kernel() -> Option<String> {
    match std::env::consts::OS {
        "windows" => None,
        _ => output_of("uname", &["-srm"]),
    }
}

fn system_name() -> Option<String> {
    match std::env::consts::OS {
        "linux" => os_release_name(&fs::read_to_string("/etc/os-release").ok()?),
        "macos" => output_of("sw_vers", &["-productVersion"]).map(|version| format!("macOS {version}")),
        _ => None,
    }
}

fn os_release_name(os_release: &str) -> Option<String> {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// A size in a file of `/proc` with lines such as `name: 123 kB`, in bytes.
fn kibibytes(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let kibibytes: u64 = value(&text, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The text after `name:` in the first line that has it.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// The file system type of a directory.
fn file_system(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    file_system_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, &directory)
}

/// The type of the innermost mount above the directory; of several at the same path, the last one, which hides the
/// others.
fn file_system_in(mounts: &str, directory: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, about) = line.split_once(" - ")?;
        let point = PathBuf::from(unescaped(mount.split(' ').nth(4)?));
        directory.starts_with(&point).then_some((point.components().count(), about.split(' ').next()?))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, file_system)| file_system.to_owned())
}

/// The kernel writes a space in a path as `\040`, and so on.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /dev/shm rw - tmpfs tmpfs rw
24 22 0:22 / /mnt/my\\040disk rw master:1 - xfs /dev/vdb rw
25 24 0:23 / /mnt/my\\040disk rw - btrfs /dev/vdc rw
";
        let of = |path: &str| file_system_in(mounts, Path::new(path));
        assert_eq!(of("/home/me").as_deref(), Some("ext4"));
        assert_eq!(of("/dev/shm/bench").as_deref(), Some("tmpfs"));
        assert_eq!(of("/dev/shmother").as_deref(), Some("ext4"));
        assert_eq!(of("/mnt/my disk/data").as_deref(), Some("btrfs"));
        assert_eq!(file_system_in("nonsense", Path::new("/")), None);
    }

    #[test]
    fn values_are_found_by_their_name() {
        let text = "processor\t: 0\nmodel name\t: A Processor: fast\nmodel name\t: another\n";
        assert_eq!(value(text, "model name"), Some("A Processor: fast"));
        assert_eq!(value(text, "model"), None);
        assert_eq!(os_release_name("NAME=x\nPRETTY_NAME=\"Some Linux 1\"\n").as_deref(), Some("Some Linux 1"));
    }

    #[test]
    fn syncs_are_timed_and_leave_nothing() {
        let directory = tempfile::tempdir().expect("made");
        let disk = Disk::measure(directory.path(), Duration::from_millis(1)).expect("measured");
        assert!(disk.fdatasync_us.expect("some").p50 > 0.0);
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 0);
    }
}
