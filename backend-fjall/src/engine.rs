use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use eventstore_api::{Direction, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task};
use lsm_tree::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PartitioningPolicy,
};
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, Config, DescriptorTable, Guard, SeqNo, SequenceNumberCounter,
};

use crate::Options;
use crate::error::{guard, guard_writing};
use crate::files::{self, Mark, Unsound};
use crate::merging::{End, Merging};
use crate::options::Compression;

/// The tables that are stored in trees.
const TREES: [Table; 2] = [Table::Ids, Table::Aggregates];

/// fjall as the engine of an index: a tree for each growing table, and a file for the one that does not grow.
pub struct FjallEngine {
    trees: [AnyTree; TREES.len()],
    mark: RwLock<Mark>,
    merging: Merging,
    directory: PathBuf,
    options: Options,
}

impl FjallEngine {
    fn tree(&self, table: Table) -> Option<&AnyTree> {
        let place = TREES.iter().position(|&other| other == table)?;
        self.trees.get(place)
    }

    fn mark(&self) -> Mark {
        self.mark.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The parts shared by the trees.
struct Shared {
    cache: Arc<Cache>,
    descriptors: Arc<DescriptorTable>,
    seqno: SequenceNumberCounter,
    end: End,
}

fn open_tree(path: &Path, options: &Options, shared: &Shared) -> Result<AnyTree> {
    let bloom = BloomConstructionPolicy::BitsPerKey(options.bloom_bits as f32);
    let filter = match path.ends_with(Table::Ids.name()) && options.bloom_bits > 0 {
        true => FilterPolicy::all(FilterPolicyEntry::Bloom(bloom)),
        false => FilterPolicy::disabled(),
    };
    let compression = match options.table_compression {
        Compression::None => CompressionType::None,
        Compression::Lz4 => CompressionType::Lz4,
    };
    let config = Config::new(path, shared.seqno.clone(), SequenceNumberCounter::default())
        .use_cache(Arc::clone(&shared.cache))
        .use_descriptor_table(Some(Arc::clone(&shared.descriptors)))
        .filter_policy(filter)
        // Parts of filters and indexes are in the cache, so that its size bounds their memory.
        .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
        .data_block_compression_policy(CompressionPolicy::all(compression))
        .with_compaction_filter_factory(Some(Arc::new(shared.end.clone())));
    let tree = guard("open a tree", || config.open())?;
    shared.seqno.fetch_max(tree.get_highest_persisted_seqno().map_or(0, |seqno| seqno + 1));
    Ok(tree)
}

impl Engine for FjallEngine {
    const NAME: &'static str = crate::NAME;

    type Options = Options;

    type Snapshot<'a> = FjallSnapshot<'a>;

    fn open(directory: &Path, options: &Options) -> Result<Self> {
        let is_new = files::is_empty(directory)?;
        let mark = match is_new {
            true => Mark::new(),
            false => files::read_mark(directory)?,
        };
        let shared = Shared {
            cache: Arc::new(Cache::with_capacity_bytes(options.block_cache as u64)),
            descriptors: Arc::new(DescriptorTable::new(options.open_files)),
            seqno: SequenceNumberCounter::default(),
            end: End::default(),
        };
        let paths = TREES.map(|table| directory.join(table.name()));
        let mut unsound = None;
        if !is_new {
            // Check all trees before anything is changed, so that damaged files are moved aside unchanged.
            paths.iter().try_for_each(|path| files::check_version(path))?;
            unsound = Some(Unsound::take_out(paths.iter().map(PathBuf::as_path))?);
        }
        let [ids, aggregates] = &paths;
        let trees = [open_tree(ids, options, &shared)?, open_tree(aggregates, options, &shared)?];
        unsound.map_or(Ok(()), Unsound::delete)?;
        if is_new {
            files::write_mark(directory, &mark)?; // with the names of the trees
        }
        trees.iter().try_for_each(|tree| guard("open a tree", || Ok(files::share(&tree.tree_config().path)?)))?;
        let merging = Merging::start(trees.clone(), shared.seqno, shared.end)?;
        Ok(FjallEngine {
            trees,
            mark: RwLock::new(mark),
            merging,
            directory: directory.to_owned(),
            options: options.clone(),
        })
    }

    fn snapshot(&self) -> Result<Self::Snapshot<'_>> {
        Ok(FjallSnapshot { engine: self })
    }

    /// Writes the entries of each tree to a new table. `lsm-tree` syncs the table before a version of the tree names
    /// it, and syncs that version and its name before it returns.
    fn write(&self, entries: &Entries) -> Result<()> {
        self.merging.wait_for_room()?;
        for (tree, table) in self.trees.iter().zip(TREES) {
            let entries = entries.of(table);
            if entries.len() == 0 {
                continue; // a table must have at least one entry
            }
            guard_writing("write a table", || {
                let mut ingestion = tree.ingestion()?;
                for (key, value) in entries {
                    ingestion.write(key, value)?;
                }
                ingestion.finish()?;
                Ok(files::share(&tree.tree_config().path)?)
            })?;
        }
        self.merging.wake();
        let changes = entries.of(Table::Meta);
        if changes.len() > 0 {
            let mut mark = self.mark();
            mark.extend(changes.map(|(key, value)| (key.to_vec(), value.to_vec())));
            files::write_mark(&self.directory, &mark)?;
            *self.mark.write().unwrap_or_else(PoisonError::into_inner) = mark;
        }
        Ok(())
    }

    fn compact(&self, task: &Task<'_>) -> Result<Vec<String>> {
        self.merging.wake();
        while !self.merging.wait_for_end()? {
            task.check()?;
        }
        let tables: usize = self.trees.iter().map(AbstractTree::table_count).sum();
        Ok(vec![format!("merged tables until no level was too large; there are {tables}")])
    }

    fn properties(&self) -> Result<Vec<(&'static str, String)>> {
        let sum = |of: fn(&AnyTree) -> u64| self.trees.iter().map(of).sum::<u64>().to_string();
        Ok(vec![
            ("table_bytes", sum(|tree| tree.disk_space())),
            ("tables", sum(|tree| tree.table_count() as u64)),
            ("level0_tables", sum(|tree| tree.level_table_count(0).unwrap_or_default() as u64)),
            ("block_cache_bytes", self.trees[0].tree_config().cache.size().to_string()),
        ])
    }
}

impl fmt::Debug for FjallEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallEngine")
            .field("directory", &self.directory)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A view of the current state of the trees: see [`Snapshot`].
#[derive(Debug)]
pub struct FjallSnapshot<'a> {
    engine: &'a FjallEngine,
}

impl Snapshot for FjallSnapshot<'_> {
    fn get(&self, table: Table, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let Some(tree) = self.engine.tree(table) else {
            return Ok(self.engine.mark().get(key).inspect(|value| out.extend_from_slice(value)).is_some());
        };
        let value = guard("read", || tree.get(key, SeqNo::MAX))?;
        if let Some(value) = &value {
            out.extend_from_slice(value);
        }
        Ok(value.is_some())
    }

    fn scan<F>(&self, table: Table, range: KeyRange<'_>, direction: Direction, mut visit: F) -> Result<()>
    where
        F: FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    {
        if range.first > range.last {
            return Ok(());
        }
        let Some(tree) = self.engine.tree(table) else {
            let mark = self.engine.mark();
            let mut entries = mark.range(range.first.to_vec()..=range.last.to_vec());
            let next = || match direction {
                Direction::Forward => entries.next(),
                Direction::Backward => entries.next_back(),
            };
            let _ = std::iter::from_fn(next).try_for_each(|(key, value)| visit(key, value));
            return Ok(());
        };
        let mut entries = guard("read", || Ok(tree.range(range.first..=range.last, SeqNo::MAX, None)))?;
        loop {
            let entry = guard("read", || {
                let entry = match direction {
                    Direction::Forward => entries.next(),
                    Direction::Backward => entries.next_back(),
                };
                entry.map(Guard::into_inner).transpose()
            })?;
            let Some((key, value)) = entry else { return Ok(()) };
            if visit(&key, &value).is_break() {
                return Ok(());
            }
        }
    }
}
