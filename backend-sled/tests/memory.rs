//! Memory that sled has freed is returned to the system.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use backend_sled::{Options, SledEngine};
use eventstore_kv::{Engine, Entries, Table};

/// The process's resident memory that is not backed by files, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
}

/// The part of it that the program has allocated and not freed, in bytes.
fn in_use() -> usize {
    // SAFETY: It may be called at any time, and only returns numbers.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

#[test]
fn what_sled_has_freed_is_given_back_when_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(directory.path(), &Options::new("elsewhere")).unwrap();
    let key = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    let is_done = AtomicBool::new(false);
    let read = |first: u64| {
        let mut n = first;
        while !is_done.load(Ordering::Relaxed) {
            engine_suite::get(&engine, Table::Ids, &key(n)).unwrap();
            n = (n + 7919) % 120_000;
        }
    };
    thread::scope(|scope| {
        (0..4).for_each(|reader| {
            drop(scope.spawn({
                let read = &read;
                move || read(reader)
            }))
        });
        for round in 0..40_u64 {
            let mut keys: Vec<_> = (round * 3000..round * 3000 + 3000).map(key).collect();
            keys.sort_unstable();
            let mut entries = Entries::new();
            keys.iter().for_each(|key| entries.put(Table::Ids, key, &[7; 60]));
            engine.write(&entries).unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
    });
    drop(engine);
    let kept = resident().saturating_sub(in_use());
    // It is 8 to 18 MB, depending on what the threads have freed last; without the request, 45 to 60.
    assert!(kept < 32 << 20, "{kept} bytes are free and kept, {} are in use", in_use());
}
