//! The machine that the figures are of.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use sysinfo::{CpuRefreshKind, Disks, RefreshKind, System};

use crate::contestants::Lacks;

#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: f64,
    pub(crate) system: String,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
}

impl Machine {
    /// The machine, with the file system that `directory` lies on.
    pub(crate) fn of(directory: &Path) -> Result<Self> {
        let mut system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
        system.refresh_memory();
        let directory = directory.canonicalize()?;
        let disks = Disks::new_with_refreshed_list();
        let disk = disks
            .iter()
            .filter(|disk| directory.starts_with(disk.mount_point()))
            .max_by_key(|disk| disk.mount_point().components().count());
        let unknown = || "unknown".to_owned();
        Ok(Machine {
            cpu: system.cpus().first().map_or_else(unknown, |cpu| cpu.brand().trim().to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: system.total_memory() as f64 / f64::from(1 << 30),
            system: System::long_os_version().unwrap_or_else(unknown),
            kernel: System::kernel_version().unwrap_or_else(unknown),
            file_system: disk.map_or_else(unknown, |disk| disk.file_system().to_string_lossy().into_owned()),
        })
    }
}

/// How long `fdatasync` takes after 400 bytes were written over zeros of a file in `directory`: one time for each write.
pub(crate) fn sync_times(directory: &Path, writes: usize) -> Result<Vec<Duration>> {
    /// What the turn before has left to the disk is not for the first writes to pay.
    const UNCOUNTED: usize = 10;
    let path = directory.join("sync");
    let mut file = File::create(&path)?;
    file.write_all(&vec![0; WRITTEN * (UNCOUNTED + writes)])?;
    file.sync_all()?;
    file.rewind()?;
    let times: Result<Vec<_>> = (0..UNCOUNTED + writes).map(|_| timed_write(&mut file)).collect();
    fs::remove_file(&path)?;
    Ok(times?.split_off(UNCOUNTED))
}

const WRITTEN: usize = 400;

fn timed_write(file: &mut File) -> Result<Duration> {
    let began = Instant::now();
    file.write_all(&[0x5a; WRITTEN])?;
    file.sync_data()?;
    Ok(began.elapsed())
}

/// What the files take, as the file system counts it.
pub(crate) fn bytes_on_disk(directory: &Path) -> Result<u64> {
    walkdir::WalkDir::new(directory).into_iter().try_fold(0, |sum, entry| {
        let entry = entry?;
        Ok(sum + if entry.file_type().is_file() { allocated(&entry.metadata()?) } else { 0 })
    })
}

#[cfg(unix)]
fn allocated(file: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    /// The unit of `st_blocks`, whatever the file system's own is.
    const BLOCK: u64 = 512;
    file.blocks() * BLOCK
}

#[cfg(not(unix))]
fn allocated(file: &fs::Metadata) -> u64 {
    file.len()
}

/// How many descriptors this process has of what lies in a directory. Only Linux tells.
pub(crate) fn descriptors_below(directory: &Path) -> Result<usize> {
    let directory = directory.canonicalize()?;
    let descriptors = fs::read_dir("/proc/self/fd").map_err(|_| Lacks("this system does not tell its descriptors"))?;
    let targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok());
    Ok(targets.filter(|target| target.starts_with(&directory)).count())
}

/// Bytes of anonymous memory that this process has. Only Linux tells.
pub(crate) fn anonymous_memory() -> Result<u64> {
    const LACKS: Lacks = Lacks("this system does not tell its anonymous memory");
    let status = fs::read_to_string("/proc/self/status").map_err(|_| LACKS)?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or(LACKS)?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}
