//! A simulated disk that tracks unsynced data, and files in memory by name.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use eventstore_log::{Directory, File, MemoryDirectory};

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

/// A directory on a simulated disk. After a power cut, each unsynced sector and name may or may not be there. After a
/// failed sync, the cache differs from the disk, and nothing writes the difference again: a changed name is durable only
/// with a later change of the same name.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    /// For a subdirectory: its name and a slash.
    prefix: String,
}

#[derive(Clone, Debug, Default)]
struct Inner {
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    /// Changes of names that are not durable.
    pending: Vec<Pending>,
    directories: BTreeSet<String>,
    /// The number of calls that change something.
    calls: u64,
    plan: Plan,
    is_down: bool,
}

#[derive(Clone, Debug)]
struct Pending {
    /// The subdirectory that it was made in.
    prefix: String,
    op: NameOp,
    /// A sync that should have made it durable has failed.
    is_lost: bool,
}

#[derive(Clone, Debug)]
enum NameOp {
    Create(String, u64),
    Rename(String, String, u64),
    Remove(String),
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// The content as read.
    view: Vec<u8>,
    disk: Vec<u8>,
    disk_len: u64,
    /// The versions of each sector since the last sync.
    dirty: BTreeMap<usize, Vec<Sector>>,
    lens: Vec<u64>,
    /// The number of failed syncs. Each open handle is told once.
    errors: u64,
}

/// The faults to inject.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The faults by the number of the call.
    pub at: BTreeMap<u64, Fault>,
    /// The capacity of the disk in bytes.
    pub capacity: Option<u64>,
    /// Selects what a failing call has done. 0: a write without room has done everything.
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails; later calls succeed.
    Error,
    /// A write runs out of space in its middle.
    Full,
    /// Every call fails from here on.
    Down,
}

/// Makes a choice: takes the number of options and returns an index.
pub type Choose<'a> = &'a mut dyn FnMut(usize) -> usize;

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Injects one more fault, at the call that is this many after the last one.
    pub fn fail_after(&self, calls: u64, fault: Fault, seed: u64) {
        let mut inner = self.lock();
        let at = inner.calls + calls;
        inner.plan.at.insert(at, fault);
        inner.plan.seed = seed;
    }

    pub fn no_faults(&self) {
        self.lock().plan = Plan::default();
    }

    pub fn used(&self) -> u64 {
        let inner = self.lock();
        inner.names.values().map(|node| inner.nodes[node].view.len() as u64).sum()
    }

    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.lock().plan.capacity = capacity;
    }

    /// A copy of this disk as the next process sees it if only the process dies.
    pub fn after_kill(&self) -> SimDisk {
        let mut inner = self.lock().clone();
        inner.plan = Plan::default();
        inner.is_down = false;
        SimDisk { inner: Arc::new(Mutex::new(inner)), prefix: String::new() }
    }

    /// A copy of this disk as it may be after a power cut.
    pub fn after_power_cut(&self, choose: Choose<'_>) -> SimDisk {
        let old = self.lock().clone();
        let mut names = old.durable.clone();
        for pending in &old.pending {
            if choose(2) == 1 {
                apply(&mut names, &pending.op);
            }
        }
        let mut nodes = BTreeMap::new();
        for node in names.values() {
            nodes.insert(*node, old.nodes[node].cut(choose));
        }
        let inner = Inner {
            nodes,
            next_node: old.next_node,
            names: names.clone(),
            durable: names,
            directories: old.directories,
            ..Inner::default()
        };
        SimDisk { inner: Arc::new(Mutex::new(inner)), prefix: String::new() }
    }

    /// Whether there are changes of names that a failed sync should have made durable: they may be undone.
    pub fn has_lost_names(&self) -> bool {
        self.lock().pending.iter().any(|pending| pending.is_lost)
    }

    /// The bytes of all files.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.lock();
        inner.names.iter().map(|(name, node)| (name.clone(), inner.nodes[node].view.clone())).collect()
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn change_names(&self, op: NameOp) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call()?;
        apply(&mut inner.names, &op);
        inner.pending.push(Pending { prefix: self.prefix.clone(), op, is_lost: false });
        Ok(())
    }
}

fn apply(names: &mut BTreeMap<String, u64>, op: &NameOp) {
    match op {
        NameOp::Create(name, node) => drop(names.insert(name.clone(), *node)),
        NameOp::Rename(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), *node);
        }
        NameOp::Remove(name) => drop(names.remove(name)),
    }
}

impl NameOp {
    fn names(&self) -> impl Iterator<Item = &str> {
        let (name, other) = match self {
            NameOp::Create(name, _) | NameOp::Remove(name) => (name, None),
            NameOp::Rename(from, to, _) => (to, Some(from)),
        };
        std::iter::once(name).chain(other).map(String::as_str)
    }

    fn shares_a_name(&self, other: &NameOp) -> bool {
        self.names().any(|name| other.names().any(|it| it == name))
    }
}

fn failed() -> io::Error {
    io::Error::other("the simulated disk failed")
}

impl Inner {
    /// Counts a call, and fails it if planned.
    fn call(&mut self) -> io::Result<()> {
        match self.next_call() {
            None => Ok(()),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(failed()),
        }
    }

    fn next_call(&mut self) -> Option<Fault> {
        if self.is_down {
            return Some(Fault::Down);
        }
        self.calls += 1;
        let fault = self.plan.at.get(&self.calls).copied()?;
        self.is_down = fault == Fault::Down;
        Some(fault)
    }

    fn chance(&mut self, options: usize) -> usize {
        self.plan.seed = self.plan.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.plan.seed >> 33) as usize % options
    }
}

impl Node {
    fn sector(bytes: &[u8], sector: usize) -> Sector {
        let mut result = [0; SECTOR];
        let start = (sector * SECTOR).min(bytes.len());
        let end = (start + SECTOR).min(bytes.len());
        result[..end - start].copy_from_slice(&bytes[start..end]);
        result
    }

    fn write(&mut self, bytes: &[u8], at: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len();
        if self.view.len() < end {
            self.view.resize(end, 0);
            self.lens.push(end as u64);
        }
        self.view[at..end].copy_from_slice(bytes);
        for sector in at / SECTOR..=(end - 1) / SECTOR {
            self.touch(sector);
        }
    }

    fn touch(&mut self, sector: usize) {
        let now = Self::sector(&self.view, sector);
        self.dirty.entry(sector).or_default().push(now);
    }

    fn set_len(&mut self, len: usize) {
        let old = self.view.len();
        self.view.resize(len, 0);
        self.lens.push(len as u64);
        if len < old {
            for sector in len / SECTOR..=(old - 1) / SECTOR {
                self.touch(sector);
            }
        }
    }

    fn put(&mut self, sector: usize, bytes: &Sector) {
        let start = sector * SECTOR;
        if self.disk.len() < start + SECTOR {
            self.disk.resize(start + SECTOR, 0);
        }
        self.disk[start..start + SECTOR].copy_from_slice(bytes);
    }

    fn sync(&mut self) {
        for sector in std::mem::take(&mut self.dirty).into_keys() {
            let now = Self::sector(&self.view, sector);
            self.put(sector, &now);
        }
        self.set_disk_len();
    }

    fn set_disk_len(&mut self) {
        if let Some(len) = self.lens.drain(..).next_back() {
            self.disk_len = len;
            self.disk.truncate(len as usize);
        }
    }

    /// Some sectors reach the disk, but all of them count as clean.
    fn fail_sync(&mut self, choose: Choose<'_>) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let chosen = choose(versions.len() + 1);
            if chosen > 0 {
                self.put(sector, &versions[chosen - 1]);
            }
        }
    }

    fn cut(&self, choose: Choose<'_>) -> Node {
        let mut node = self.clone();
        node.fail_sync(choose);
        let chosen = choose(self.lens.len() + 1);
        let len = if chosen == 0 { self.disk_len } else { self.lens[chosen - 1] };
        node.disk.resize(len as usize, 0);
        Node { view: node.disk.clone(), disk: node.disk, disk_len: len, ..Node::default() }
    }
}

impl Directory for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.lock();
        let all = inner.names.keys().chain(&inner.directories);
        let here = all.filter_map(|name| name.strip_prefix(&self.prefix)).filter(|name| !name.contains('/'));
        Ok(here.map(str::to_owned).collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inner = self.lock();
        let node = *inner.names.get(&self.path(name)).ok_or(io::ErrorKind::NotFound)?;
        let seen = AtomicU64::new(inner.nodes[&node].errors);
        Ok(Arc::new(SimFile { disk: self.clone(), node, seen }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let path = self.path(name);
        if self.lock().names.contains_key(&path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = {
            let mut inner = self.lock();
            inner.next_node += 1;
            let node = inner.next_node;
            inner.nodes.insert(node, Node::default());
            node
        };
        self.change_names(NameOp::Create(path, node))?;
        Ok(Arc::new(SimFile { disk: self.clone(), node, seen: AtomicU64::new(0) }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let node = *self.lock().names.get(&self.path(from)).ok_or(io::ErrorKind::NotFound)?;
        self.change_names(NameOp::Rename(self.path(from), self.path(to), node))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if !self.lock().names.contains_key(&self.path(name)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change_names(NameOp::Remove(self.path(name)))
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock();
        let result = inner.call();
        let mut pending = std::mem::take(&mut inner.pending);
        if result.is_ok() {
            let mut are_safe: Vec<_> =
                pending.iter().map(|pending| pending.prefix == self.prefix && !pending.is_lost).collect();
            for at in (0..pending.len()).rev() {
                for earlier in 0..at {
                    are_safe[earlier] |= are_safe[at] && pending[at].op.shares_a_name(&pending[earlier].op);
                }
            }
            let mut are_safe = are_safe.into_iter();
            pending.retain(|pending| {
                let is_safe = are_safe.next().unwrap();
                if is_safe {
                    apply(&mut inner.durable, &pending.op);
                }
                !is_safe
            });
        } else if !inner.is_down {
            pending.iter_mut().filter(|pending| pending.prefix == self.prefix).for_each(|it| it.is_lost = true);
        }
        inner.pending = pending;
        result
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.lock().directories.insert(self.path(name));
        Ok(Arc::new(SimDisk { inner: Arc::clone(&self.inner), prefix: format!("{}{name}/", self.prefix) }))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    node: u64,
    /// The number of errors that this handle was told.
    seen: AtomicU64,
}

impl SimFile {
    fn with<T>(&self, call: impl FnOnce(&mut Node) -> T) -> T {
        call(self.disk.lock().nodes.get_mut(&self.node).unwrap())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.lock();
        let result = inner.call();
        let mut choose = by_chance(inner.plan.seed);
        let is_down = inner.is_down;
        let node = inner.nodes.get_mut(&self.node).unwrap();
        match &result {
            Ok(()) => node.sync(),
            Err(_) if is_down => {}
            Err(_) => {
                node.fail_sync(&mut choose);
                node.errors += 1;
            }
        }
        let is_told = self.seen.swap(node.errors, Ordering::Relaxed) < node.errors;
        if is_told { result.and(Err(failed())) } else { result }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|node| node.view.len() as u64))
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        if self.disk.lock().is_down {
            return Err(failed());
        }
        self.with(|node| {
            let start = (at as usize).min(node.view.len());
            let end = start.saturating_add(len).min(node.view.len());
            out.extend_from_slice(&node.view[start..end]);
            Ok(end - start)
        })
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let used = self.disk.used();
        let mut inner = self.disk.lock();
        let was_down = inner.is_down;
        let mut fault = inner.next_call();
        let here = inner.nodes[&self.node].view.len() as u64;
        let more = (at + bytes.len() as u64).saturating_sub(here);
        if fault.is_none() && more > 0 && inner.plan.capacity.is_some_and(|capacity| used + more > capacity) {
            fault = Some(Fault::Full);
        }
        let written = match fault {
            None => bytes.len(),
            Some(_) if was_down => 0,
            // A file system may report the lack of space only after it has accepted everything.
            Some(Fault::Full) if inner.plan.seed == 0 => bytes.len(),
            Some(_) => inner.chance(bytes.len() + 1),
        };
        inner.nodes.get_mut(&self.node).unwrap().write(&bytes[..written], at as usize);
        match fault {
            None => Ok(()),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(failed()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.lock();
        inner.call()?;
        inner.nodes.get_mut(&self.node).unwrap().set_len(len as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}

/// Random choices, the same for the same seed.
pub fn by_chance(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |options| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) ^ (seed >> 50)) as usize % options
    }
}

/// Every sequence of choices, one after the other.
#[derive(Debug, Default)]
pub struct Every {
    choices: Vec<(usize, usize)>,
    next: usize,
    is_over: bool,
}

impl Every {
    /// Begins the next sequence, if there is one.
    pub fn begin(&mut self) -> bool {
        self.next = 0;
        !self.is_over
    }

    pub fn choose(&mut self, options: usize) -> usize {
        if self.next == self.choices.len() {
            self.choices.push((0, options));
        }
        let (choice, all) = self.choices[self.next];
        assert_eq!(all, options, "the same choices lead to the same question");
        self.next += 1;
        choice
    }

    /// Advances to the next sequence.
    pub fn end(&mut self) {
        self.choices.truncate(self.next);
        while let Some((choice, options)) = self.choices.pop() {
            if choice + 1 < options {
                self.choices.push((choice + 1, options));
                return;
            }
        }
        self.is_over = true;
    }
}

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

pub fn files(directory: &MemoryDirectory) -> Files {
    let read = |name: String| {
        let mut bytes = Vec::new();
        directory.open(&name).ok()?.read_at(&mut bytes, 0, usize::MAX / 2).unwrap();
        Some((name, bytes))
    };
    directory.list().unwrap().into_iter().filter_map(read).collect()
}

pub fn directory(files: &Files) -> MemoryDirectory {
    let directory = MemoryDirectory::default();
    for (name, bytes) in files {
        directory.create(name).unwrap().write_at(bytes, 0).unwrap();
    }
    directory
}
