//! Reads LMDB's pages from the file without trusting them.
//!
//! LMDB has no checksums and follows whatever its pages say, so a damaged page can crash the process. Here, each page
//! is read as bytes and followed only if everything in it is consistent: before the file is mapped, the pages that
//! opening and the first write will touch; during verification, every page. Pages that pass can be read through the
//! map.
//!
//! The layout is that of LMDB 0.9 on 64-bit systems; on other systems nothing is checked.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{self, AtomicBool};

use eventstore_api::{Error, Result};
use eventstore_kv::{Table, Task, damaged_index};

/// The file with LMDB's pages.
pub(crate) const DATA_FILE: &str = "data.mdb";
/// Size of a page's header: its number, two unused bytes, its kind, and two or four bytes that depend on the kind.
const PAGE_HEADER: usize = 16;
/// Size of a node's header: the length of the data or the number of a page, flags, and the length of the key.
const NODE_HEADER: usize = 8;
/// The number of meta pages, from which everything else can be reached. Commits write them in turn.
const META_PAGES: u64 = 2;
/// The used part of a meta page, in bytes.
const META_LEN: usize = PAGE_HEADER + 136;
const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;
/// The size of the description of a tree.
const TREE_LEN: usize = 48;
/// The root of a tree without pages.
const NO_PAGE: u64 = u64::MAX;
/// The most levels that LMDB descends.
const MOST_LEVELS: u16 = 32;
/// The longest key in LMDB's default build.
const LONGEST_KEY: usize = 511;
/// Pages between two checks of the task.
const PAGES_A_LOOK: u64 = 4096;

const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
const META: u16 = 8;

/// The data of a node are in separate pages.
const BIG_DATA: u16 = 1;
/// The data of a node describe a tree.
const SUB_TREE: u16 = 2;
/// Keys are numbers in native byte order.
const INTEGER_KEYS: u16 = 8;

/// Checks that the directory is empty, or that the pages of its data file that opening reads are valid.
///
/// # Errors
///
/// [`Error::Corrupt`]; [`Error::Open`] if the directory or the file cannot be read.
pub(crate) fn check_before_opening(directory: &Path) -> Result<()> {
    let unreadable = |error: io::Error| Error::Open {
        path: directory.display().to_string(),
        reason: format!("its {DATA_FILE} cannot be read"),
        source: Some(error.into()),
    };
    let file = match File::open(directory.join(DATA_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match directory.read_dir().map_err(unreadable)?.next() {
                None => Ok(()),
                Some(_) => Err(damaged_index(format!("its {DATA_FILE} is missing"))),
            };
        }
        opened => opened.map_err(unreadable)?,
    };
    match check(file, None, None) {
        Err(Stop::Unreadable(error)) => Err(unreadable(error)),
        checked => checked.map_err(Stop::into_error),
    }
}

/// Checks all pages of this transaction: fails if a page is damaged, or is counted twice or not at all among the used
/// and the free pages. Returns false if the check has to be restarted with another transaction, because two writes came
/// in between or the check blocks others.
///
/// # Errors
///
/// [`Error::Corrupt`]; [`Error::Engine`] if the file cannot be read; the error of [`Task::check`].
pub(crate) fn check_moment(directory: &Path, transaction: u64, mut looks: Looks<'_>) -> Result<bool> {
    let opened = File::open(directory.join(DATA_FILE)).map_err(Stop::Unreadable);
    match opened.and_then(|file| check(file, Some(transaction), Some(&mut looks))) {
        Err(Stop::Again) => Ok(false),
        checked => checked.map(|()| true).map_err(Stop::into_error),
    }
}

/// Checks all pages of a transaction, or those of the newest that opening reads.
fn check(file: File, transaction: Option<u64>, looks: Option<&mut Looks<'_>>) -> Checked {
    if cfg!(not(target_pointer_width = "64")) {
        return Ok(());
    }
    Pages::begin(file, transaction)?.check(looks)
}

/// Why a check stopped early.
#[derive(Debug)]
enum Stop {
    /// The damaged page, and what is wrong with it.
    Damage(u64, String),
    Unreadable(io::Error),
    /// The transaction is no longer there, or the check blocks others.
    Again,
    /// The task was cancelled.
    Unwanted(Error),
}

type Checked<T = ()> = std::result::Result<T, Stop>;

impl Stop {
    fn into_error(self) -> Error {
        match self {
            Stop::Damage(page, what) => damaged_index(format!("page {page} of {DATA_FILE} {what}")),
            Stop::Unreadable(error) => Error::engine("check the pages", error),
            Stop::Again => Error::engine("check the pages", "they changed during the check"),
            Stop::Unwanted(error) => error,
        }
    }
}

/// Fails with what is wrong with a page, unless the condition holds.
macro_rules! sound {
    ($holds:expr, $page:expr, $($what:tt)+) => {
        if !$holds {
            return Err(Stop::Damage($page, format!($($what)+)));
        }
    };
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|n| bytes[at + n]))
}

/// Both halves of a length or page number in a node. Their order is the same on every machine that LMDB runs on.
fn halves_at(bytes: &[u8], at: usize) -> u32 {
    let (first, second) = (u32::from(u16_at(bytes, at)), u32::from(u16_at(bytes, at + 2)));
    if cfg!(target_endian = "little") { first | second << 16 } else { first << 16 | second }
}

/// The description of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tree {
    flags: u16,
    depth: u16,
    /// The numbers of branch, leaf and overflow pages.
    pages: [u64; 3],
    entries: u64,
    root: u64,
}

impl Tree {
    fn read(bytes: &[u8]) -> Self {
        Tree {
            flags: u16_at(bytes, 4),
            depth: u16_at(bytes, 6),
            pages: [u64_at(bytes, 8), u64_at(bytes, 16), u64_at(bytes, 24)],
            entries: u64_at(bytes, 32),
            root: u64_at(bytes, 40),
        }
    }
}

/// The purpose of a tree, which determines the content of its leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Transaction numbers, each with a list of the pages that it freed.
    Free,
    /// Names of tables, each with a description.
    Names,
    /// Keys and values of the store.
    Table(Table),
}

impl Kind {
    fn flags(self) -> u16 {
        if self == Kind::Free { INTEGER_KEYS } else { 0 }
    }

    fn compare(self, a: &[u8], b: &[u8]) -> Ordering {
        if self == Kind::Free { u64_at(a, 0).cmp(&u64_at(b, 0)) } else { a.cmp(b) }
    }

    fn is_key_len(self, len: usize) -> bool {
        if self == Kind::Free { len == 8 } else { (1..=LONGEST_KEY).contains(&len) }
    }
}

/// The counts of a tree's pages and entries.
#[derive(Default)]
struct Counted {
    pages: [u64; 3],
    entries: u64,
}

/// The data file as of one commit.
struct Pages {
    file: File,
    page_size: usize,
    /// The number of complete pages in the file.
    len: u64,
    last_page: u64,
    free: Tree,
    names: Tree,
    /// The meta page of this commit.
    meta_page: u64,
    /// One buffer for each level.
    buffers: Vec<Vec<u8>>,
    /// The visited pages, one bit each.
    met: Vec<u64>,
}

impl Pages {
    /// Starts with this transaction, or with the newest.
    fn begin(mut file: File, transaction: Option<u64>) -> Checked<Self> {
        let mut before = read_metas(&mut file)?;
        // A commit may be writing one of them.
        let metas = loop {
            let again = read_metas(&mut file)?;
            if again == before {
                break again;
            }
            before = again;
        };
        let [page_size, other] = metas.each_ref().map(|meta| page_size_in(meta));
        let is_size = page_size == other && page_size.is_power_of_two() && (512..=32 << 10).contains(&page_size);
        sound!(is_size, 0, "says that pages have {page_size} bytes, and the next one {other}");
        let page_size = page_size as usize;
        let [first, second] = metas.each_ref().map(|meta| u64_at(meta, META_LEN - 8));
        // During the sync of a commit, its meta page is already there, but not yet visible to transactions.
        let meta_page = match transaction {
            None => usize::from(second > first),
            Some(wanted) if wanted == first => 0,
            Some(wanted) if wanted == second => 1,
            Some(_) => return Err(Stop::Again),
        };
        let meta = &metas[meta_page];
        let mut pages = Pages {
            len: file.metadata().map_err(Stop::Unreadable)?.len() / page_size as u64,
            file,
            page_size,
            last_page: u64_at(meta, META_LEN - 16),
            free: Tree::read(&meta[PAGE_HEADER + 24..]),
            names: Tree::read(&meta[PAGE_HEADER + 24 + TREE_LEN..]),
            meta_page: meta_page as u64,
            buffers: Vec::new(),
            met: Vec::new(),
        };
        pages.check_meta()?;
        pages.met = vec![0; pages.last_page as usize / 64 + 1];
        Ok(pages)
    }

    /// Checks everything. Without `looks`, only what opening and the first write read: the free pages, the names of the
    /// tables, the mark of the index, and the roots.
    fn check(&mut self, mut looks: Option<&mut Looks<'_>>) -> Checked {
        let is_all = looks.is_some();
        self.walk(Kind::Free, self.free, true, looks.as_deref_mut())?;
        for (table, tree) in self.check_names()? {
            self.walk(Kind::Table(table), tree, is_all || table == Table::Meta, looks.as_deref_mut())?;
        }
        if is_all {
            let met: u64 = self.met.iter().map(|word| u64::from(word.count_ones())).sum();
            let expected = self.last_page + 1 - META_PAGES;
            sound!(met == expected, self.meta_page, "counts {expected} pages, and {met} are in use or free");
        }
        Ok(())
    }

    fn check_meta(&self) -> Checked {
        let page = self.meta_page;
        let needed = self.last_page.saturating_add(1);
        sound!(
            self.len >= needed,
            page,
            "says that there are {needed} pages, and {} are there: the file was cut short",
            self.len
        );
        sound!(self.last_page >= META_PAGES - 1, page, "says that there are {needed} pages");
        for (kind, tree) in [(Kind::Free, self.free), (Kind::Names, self.names)] {
            check_description(page, kind, tree)?;
        }
        Ok(())
    }

    /// Checks the names and returns the tables. A store that was just created has none, or not all.
    fn check_names(&mut self) -> Checked<Vec<(Table, Tree)>> {
        let mut found = Vec::new();
        if self.names.root == NO_PAGE {
            return Ok(found);
        }
        // There are so few that they fit into one page, the root.
        let depth = self.names.depth;
        sound!(depth == 1, self.meta_page, "says that the names of the tables have {depth} levels");
        self.walk(Kind::Names, self.names, true, None)?;
        let root = self.names.root;
        let page = self.read(0, root)?;
        for node in leaf_nodes(&page) {
            let name = &page[node.key.clone()];
            let Some(table) = Table::ALL.into_iter().find(|table| table.name().as_bytes() == name) else {
                return Err(Stop::Damage(root, format!("names a table {:?}", String::from_utf8_lossy(name))));
            };
            let tree = Tree::read(&page[node.data]);
            check_description(root, Kind::Table(table), tree)?;
            found.push((table, tree));
        }
        self.give_back(0, page);
        Ok(found)
    }

    fn walk(&mut self, kind: Kind, tree: Tree, is_whole: bool, looks: Option<&mut Looks<'_>>) -> Checked {
        if tree.root == NO_PAGE {
            return Ok(());
        }
        let mut walk = Walk { pages: self, kind, depth: tree.depth, is_whole, counted: Counted::default(), looks };
        walk.page(tree.root, 1, None..None)?;
        let Counted { pages, entries } = walk.counted;
        if is_whole {
            sound!(
                pages == tree.pages && entries == tree.entries,
                tree.root,
                "begins a tree that is said to have {:?} pages and {} entries, and has {pages:?} and {entries}",
                tree.pages,
                tree.entries
            );
        }
        Ok(())
    }

    /// The bytes of a page that is not a meta page, in the buffer of a level.
    fn read(&mut self, level: u16, page: u64) -> Checked<Vec<u8>> {
        let level = usize::from(level);
        if self.buffers.len() <= level {
            self.buffers.resize_with(level + 1, Vec::new);
        }
        let mut buffer = std::mem::take(&mut self.buffers[level]);
        buffer.resize(self.page_size, 0);
        self.read_bytes(page * self.page_size as u64, &mut buffer)?;
        sound!(u64_at(&buffer, 0) == page, page, "says that it is page {}", u64_at(&buffer, 0));
        Ok(buffer)
    }

    fn read_bytes(&mut self, at: u64, bytes: &mut [u8]) -> Checked {
        let read = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.read_exact(bytes));
        read.map_err(Stop::Unreadable)
    }

    fn give_back(&mut self, level: u16, buffer: Vec<u8>) {
        self.buffers[usize::from(level)] = buffer;
    }

    /// Notes that a page is in use or free, according to page `by`.
    fn meet(&mut self, page: u64, by: u64) -> Checked {
        sound!((META_PAGES..=self.last_page).contains(&page), by, "points to page {page}, which does not exist");
        let (word, bit) = (page as usize / 64, 1 << (page % 64));
        sound!(self.met[word] & bit == 0, by, "points to page {page}, and so does another");
        self.met[word] |= bit;
        Ok(())
    }
}

/// Both meta pages.
fn read_metas(file: &mut File) -> Checked<[[u8; META_LEN]; 2]> {
    let mut metas = [[0; META_LEN]; 2];
    let mut page_size = 0;
    for (meta, number) in metas.iter_mut().zip(0..) {
        let read = file.seek(SeekFrom::Start(page_size * number)).and_then(|_| file.read_exact(meta));
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Stop::Damage(number, "is missing: the file was cut short".to_owned()));
            }
            read => read.map_err(Stop::Unreadable)?,
        }
        let is_known = u16_at(meta, 10) & META != 0
            && u32_at(meta, PAGE_HEADER) == MAGIC
            && u32_at(meta, PAGE_HEADER + 4) == DATA_VERSION;
        sound!(is_known, number, "is not a first page of this version of LMDB");
        page_size = u64::from(page_size_in(meta));
    }
    Ok(metas)
}

/// The page size according to a meta page.
fn page_size_in(meta: &[u8]) -> u32 {
    u32_at(meta, PAGE_HEADER + 24)
}

fn check_description(page: u64, kind: Kind, tree: Tree) -> Checked {
    let Tree { flags, depth, root, .. } = tree;
    sound!(flags == kind.flags(), page, "says that a tree has flags {flags:#x}");
    let is_empty = root == NO_PAGE;
    sound!(depth <= MOST_LEVELS && (depth == 0) == is_empty, page, "says that a tree has {depth} levels");
    Ok(())
}

/// The reasons to stop a long check.
#[derive(Debug)]
pub(crate) struct Looks<'a> {
    task: &'a Task<'a>,
    is_in_the_way: &'a AtomicBool,
    done: u64,
}

impl<'a> Looks<'a> {
    pub(crate) fn new(task: &'a Task<'a>, is_in_the_way: &'a AtomicBool) -> Self {
        Looks { task, is_in_the_way, done: 0 }
    }

    /// Called for each page.
    fn look(&mut self) -> Checked {
        self.done += 1;
        if self.done.is_multiple_of(PAGES_A_LOOK) {
            self.task.check().map_err(Stop::Unwanted)?;
            if self.is_in_the_way.load(atomic::Ordering::Relaxed) {
                return Err(Stop::Again);
            }
        }
        Ok(())
    }
}

/// The position of a node's key and data in a leaf; in a branch, of its key and page number.
struct Node {
    key: Range<usize>,
    data: Range<usize>,
    flags: u16,
}

fn node_places(page: &[u8]) -> impl ExactSizeIterator<Item = usize> + Clone {
    let count = (usize::from(u16_at(page, 12)) - PAGE_HEADER) / 2;
    (0..count).map(|n| usize::from(u16_at(page, PAGE_HEADER + 2 * n)))
}

/// The range of the key of the node at this offset.
fn key_range(page: &[u8], at: usize) -> Range<usize> {
    let start = at + NODE_HEADER;
    start..start + usize::from(u16_at(page, at + 6))
}

/// The nodes of a checked leaf.
fn leaf_nodes(page: &[u8]) -> impl Iterator<Item = Node> {
    node_places(page).map(|at| leaf_node(page, at))
}

fn leaf_node(page: &[u8], at: usize) -> Node {
    let key = key_range(page, at);
    let flags = u16_at(page, at + 4);
    let data_len = if flags & BIG_DATA == 0 { halves_at(page, at) as usize } else { 8 };
    Node { data: key.end..key.end + data_len, key, flags }
}

/// A walk through a tree.
struct Walk<'a, 'l> {
    pages: &'a mut Pages,
    kind: Kind,
    depth: u16,
    /// Whether to check the whole tree, or only the root.
    is_whole: bool,
    counted: Counted,
    looks: Option<&'a mut Looks<'l>>,
}

impl Walk<'_, '_> {
    /// Checks a page, whose keys must be in the range, and the pages below it.
    fn page(&mut self, number: u64, level: u16, keys: Range<Option<&[u8]>>) -> Checked {
        if level == 1 {
            self.pages.meet(number, self.pages.meta_page)?;
        }
        if let Some(looks) = &mut self.looks {
            looks.look()?;
        }
        let page = self.pages.read(level, number)?;
        let is_leaf = level == self.depth;
        let (kind, expected) = (u16_at(&page, 10), if is_leaf { LEAF } else { BRANCH });
        sound!(kind == expected, number, "is of kind {kind:#x} at level {level} of {}", self.depth);
        self.counted.pages[usize::from(is_leaf)] += 1;
        check_nodes(number, &page, is_leaf)?;
        self.check_keys(number, &page, is_leaf, keys.clone())?;
        if is_leaf {
            for node in leaf_nodes(&page) {
                self.leaf_node(number, &page, &node)?;
            }
        } else if self.is_whole {
            self.children(number, &page, level, keys)?;
        }
        self.pages.give_back(level, page);
        Ok(())
    }

    /// Checks that the keys are ascending and in the range that the page above expects. The first key of a branch has
    /// no meaning.
    fn check_keys(&self, number: u64, page: &[u8], is_leaf: bool, keys: Range<Option<&[u8]>>) -> Checked {
        let mut last = keys.start.map(|key| (key, true));
        for (n, at) in node_places(page).enumerate() {
            if n == 0 && !is_leaf {
                continue;
            }
            let key = &page[key_range(page, at)];
            sound!(self.kind.is_key_len(key.len()), number, "has a key of {} bytes", key.len());
            let ascends = last.is_none_or(|(last, may_equal)| match self.kind.compare(last, key) {
                Ordering::Less => true,
                Ordering::Equal => may_equal,
                Ordering::Greater => false,
            });
            let is_below = keys.end.is_none_or(|end| self.kind.compare(key, end) == Ordering::Less);
            sound!(ascends && is_below, number, "has a key out of order, in node {n}");
            last = Some((key, false));
        }
        Ok(())
    }

    fn children(&mut self, number: u64, page: &[u8], level: u16, keys: Range<Option<&[u8]>>) -> Checked {
        let mut places = node_places(page).enumerate().peekable();
        let key_of = |at: usize| &page[key_range(page, at)];
        while let Some((n, at)) = places.next() {
            let child = u64::from(halves_at(page, at)) | u64::from(u16_at(page, at + 4)) << 32;
            self.pages.meet(child, number)?;
            let first = if n == 0 { keys.start } else { Some(key_of(at)) };
            let end = places.peek().map_or(keys.end, |(_, at)| Some(key_of(*at)));
            self.page(child, level + 1, first..end)?;
        }
        Ok(())
    }

    fn leaf_node(&mut self, number: u64, page: &[u8], node: &Node) -> Checked {
        self.counted.entries += 1;
        let flags = if self.kind == Kind::Names { SUB_TREE } else { node.flags & BIG_DATA };
        sound!(node.flags == flags, number, "has a node with flags {:#x}", node.flags);
        if node.flags & BIG_DATA != 0 {
            let len = u64::from(halves_at(page, node.key.start - NODE_HEADER));
            let first = u64_at(page, node.data.start);
            return self.overflow(number, first, len);
        }
        match self.kind {
            Kind::Free => self.free_pages(number, &page[node.data.clone()]),
            Kind::Names => {
                sound!(node.data.len() == TREE_LEN, number, "describes a tree in {} bytes", node.data.len());
                Ok(())
            }
            Kind::Table(_) => Ok(()),
        }
    }

    /// Checks data in separate pages.
    fn overflow(&mut self, by: u64, first: u64, len: u64) -> Checked {
        self.pages.meet(first, by)?;
        let header = self.pages.read(self.depth + 1, first)?;
        let (kind, count) = (u16_at(&header, 10), u64::from(u32_at(&header, 12)));
        sound!(kind == OVERFLOW, first, "is of kind {kind:#x}, and page {by} has data there");
        let needed = (PAGE_HEADER as u64 + len).div_ceil(self.pages.page_size as u64);
        sound!(count >= needed, first, "begins {count} pages, and page {by} has {len} bytes there");
        for page in first + 1..first + count {
            self.pages.meet(page, first)?;
        }
        self.pages.give_back(self.depth + 1, header);
        self.counted.pages[2] += count;
        if self.kind == Kind::Free {
            let mut list = vec![0; len as usize];
            let at = first * self.pages.page_size as u64 + PAGE_HEADER as u64;
            self.pages.read_bytes(at, &mut list)?;
            self.free_pages(first, &list)?;
        }
        Ok(())
    }

    /// Checks a list of free pages: their count, and their numbers.
    fn free_pages(&mut self, by: u64, list: &[u8]) -> Checked {
        let room = (list.len() / 8) as u64;
        sound!(room > 0 && list.len().is_multiple_of(8), by, "has a list of free pages in {} bytes", list.len());
        let count = u64_at(list, 0);
        sound!(count < room, by, "has a list of {count} free pages in {} bytes", list.len());
        for n in 1..=count as usize {
            self.pages.meet(u64_at(list, 8 * n), by)?;
        }
        Ok(())
    }
}

/// Checks that the nodes are within the page and fill it from its end without a gap or an overlap.
fn check_nodes(number: u64, page: &[u8], is_leaf: bool) -> Checked {
    let (lower, upper) = (usize::from(u16_at(page, 12)), usize::from(u16_at(page, 14)));
    let is_room = PAGE_HEADER < lower && lower.is_multiple_of(2) && lower <= upper && upper <= page.len();
    sound!(is_room, number, "says that its free room is from byte {lower} to {upper}");
    let mut bytes = 0;
    for (n, at) in node_places(page).enumerate() {
        let is_within = (upper..=page.len() - NODE_HEADER).contains(&at) && at.is_multiple_of(2);
        sound!(is_within, number, "has node {n} at byte {at}");
        let end = match is_leaf {
            true => leaf_node(page, at).data.end,
            false => key_range(page, at).end,
        };
        sound!(end <= page.len(), number, "has node {n} up to byte {end}");
        bytes += (end - at).next_multiple_of(2);
    }
    sound!(bytes == page.len() - upper, number, "has nodes of {bytes} bytes from byte {upper} on");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use eventstore_api::Context;
    use eventstore_kv::{Engine, Entries};

    use super::*;
    use crate::{LmdbEngine, Options};

    /// An index with trees of one and of more levels, values in separate pages, and free pages.
    fn written(directory: &Path) -> Vec<u8> {
        let engine = LmdbEngine::open(directory, &Options::new(directory)).expect("opened");
        for round in 0..12_u64 {
            let mut entries = Entries::new();
            for n in round * 20..(round + 1) * 20 {
                let key = [&n.to_be_bytes()[..], &[7; 400]].concat();
                entries.put(Table::Aggregates, &key, &vec![7; if n % 10 == 0 { 2048 } else { 100 }]);
            }
            let ids = (0..40).map(|n| (round * 40 + n).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
            ids.collect::<BTreeSet<_>>().iter().for_each(|id| entries.put(Table::Ids, id, &[1; 60]));
            entries.put(Table::Meta, b"round", &round.to_be_bytes());
            engine.write(&entries).expect("written");
        }
        drop(engine);
        fs::read(directory.join(DATA_FILE)).expect("read")
    }

    /// The pages that were visited.
    fn checked(directory: &Path) -> std::result::Result<BTreeSet<u64>, String> {
        let (ctx, is_wanted, is_in_the_way) = (Context::background(), || Ok(()), AtomicBool::new(false));
        let task = Task::new(&ctx, &is_wanted);
        let file = File::open(directory.join(DATA_FILE)).expect("opened");
        let message = |stop: Stop| stop.into_error().to_string();
        let mut pages = Pages::begin(file, None).map_err(message)?;
        pages.check(Some(&mut Looks::new(&task, &is_in_the_way))).map_err(message)?;
        Ok(met(&pages))
    }

    fn met(pages: &Pages) -> BTreeSet<u64> {
        (0..=pages.last_page).filter(|page| pages.met[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
    }

    #[test]
    fn a_sound_file_is_sound_and_each_page_is_met_once() {
        let directory = tempfile::tempdir().expect("directory");
        let bytes = written(directory.path());
        assert_eq!(checked(directory.path()).expect("sound"), (META_PAGES..bytes.len() as u64 / 4096).collect());
        check_before_opening(directory.path()).expect("sound");
        // An empty directory, and one that does not exist.
        let empty = tempfile::tempdir().expect("directory");
        check_before_opening(empty.path()).expect("there is none");
        drop(LmdbEngine::open(empty.path(), &Options::new("d")).expect("opened"));
        checked(empty.path()).expect("sound");
    }

    /// Every byte that LMDB relies on: the headers of pages, the offsets of nodes, and the headers of nodes.
    #[test]
    fn every_flipped_bit_that_lmdb_goes_by_is_found() {
        let directory = tempfile::tempdir().expect("directory");
        let sound = written(directory.path());
        let path = directory.path().join(DATA_FILE);
        let page_size = page_size_in(&sound) as usize;
        let mut places = Vec::new();
        for page in in_use(&path) {
            let start = page as usize * page_size;
            let bytes = &sound[start..start + page_size];
            if u64_at(bytes, 0) != page {
                continue; // it continues the data of the previous page
            }
            let kind = u16_at(bytes, 10);
            places.extend((0..8).chain(10..16).map(|at| start + at)); // two bytes have no meaning
            if kind == OVERFLOW {
                continue;
            }
            let pointers = node_places(bytes);
            places.extend((PAGE_HEADER..PAGE_HEADER + 2 * pointers.len()).map(|at| start + at));
            for at in pointers {
                // The length of data in separate pages may be anything that fits into them.
                let is_free = kind == LEAF && u16_at(bytes, at + 4) == BIG_DATA;
                places.extend((at + if is_free { 2 } else { 0 }..at + NODE_HEADER).map(|at| start + at));
            }
        }
        assert!(places.len() > 4_000, "{} places", places.len());
        let mut file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
        let mut put = |at: usize, byte: u8| {
            use std::io::Write;
            file.seek(SeekFrom::Start(at as u64)).expect("found");
            file.write_all(&[byte]).expect("written");
        };
        for (n, at) in places.into_iter().enumerate() {
            let bit = n % 7 + 1; // a length may be one more: nodes begin at even offsets
            put(at, sound[at] ^ 1 << bit);
            assert!(checked(directory.path()).is_err(), "bit {bit} of byte {at}: page {}", at / page_size);
            put(at, sound[at]);
        }
        checked(directory.path()).expect("sound again");
    }

    /// The pages of the trees, without the free ones.
    fn in_use(path: &Path) -> BTreeSet<u64> {
        let mut pages = Pages::begin(File::open(path).expect("opened"), None).expect("sound");
        let mut trees: Vec<_> = pages.check_names().expect("sound");
        let mut used = met(&pages);
        while let Some((table, tree)) = trees.pop() {
            pages.walk(Kind::Table(table), tree, true, None).expect("sound");
            used.extend(met(&pages));
        }
        used
    }

    #[test]
    fn what_opening_reads_is_checked_before() {
        let directory = tempfile::tempdir().expect("directory");
        let sound = written(directory.path());
        let path = directory.path().join(DATA_FILE);
        let pages = Pages::begin(File::open(&path).expect("opened"), None).expect("sound");
        let page_size = pages.page_size;
        let meta = pages.meta_page as usize * page_size;
        let [names, free] = [pages.names, pages.free].map(|tree| tree.root as usize * page_size);
        let refused = |at: usize, bit: u8| {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << bit;
            fs::write(&path, bytes).expect("written");
            let error = LmdbEngine::open(directory.path(), &Options::new("d")).expect_err("it was damaged");
            assert!(matches!(error, Error::Corrupt { version: None, .. }), "{error}");
            error.to_string()
        };
        assert!(refused(meta + PAGE_HEADER, 3).contains("not a first page"), "the mark of LMDB's files");
        assert!(refused(meta + 40, 3).contains("says that pages have"), "the size of a page");
        assert!(refused(meta + 44, 2).contains("flags"), "the flags of the free list");
        assert!(refused(meta + 94, 6).contains("levels"), "the levels of the names");
        assert!(refused(meta + META_LEN - 16, 7).contains("cut short"), "the last page");
        assert!(refused(meta + 130, 5).contains("points to page"), "the root of the names");
        assert!(refused(names + 12, 4).contains("free room"), "where the names' free room begins");
        assert!(refused(free + 10, 4).contains("of kind"), "the kind of a page of the free list");
    }
}
