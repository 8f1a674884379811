//! The machine that the figures are of.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use sysinfo::{CpuRefreshKind, Disks, RefreshKind, System};

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

/// How long `fdatasync` takes after 400 bytes were appended to a file in `directory`: one time for each append.
pub(crate) fn sync_times(directory: &Path, appends: usize) -> Result<Vec<Duration>> {
    let path = directory.join("sync");
    let mut file = File::create(&path)?;
    let times = (0..appends)
        .map(|_| {
            file.write_all(&[0x5a; 400])?;
            let began = Instant::now();
            file.sync_data()?;
            Ok(began.elapsed())
        })
        .collect();
    std::fs::remove_file(&path)?;
    times
}
