//! Restores the filter of known ids and aggregates when a store is opened: from the file that closing wrote, or from
//! the index. Opening does not wait for it; until it is restored, ids are looked up.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eventstore_api::{Direction, Error, Result};
use eventstore_log::{Page, sync_dir};

use crate::engine::{Engine, KeyRange, Snapshot, Table};
use crate::error::log_error;
use crate::format::keys;
use crate::format::record::Leads;
use crate::index::filter::{self, Binding, Filter};
use crate::shared::Shared;
use crate::sync::{Mutex, PoisonError, background};
use crate::write::staging::Known;

/// The file's name in the store's directory.
pub(crate) const FILTER_FILE: &str = "filter";
const NEW_FILTER_FILE: &str = "filter.new";

/// Loads and saves a store's filter.
pub(crate) struct Filters {
    budget: usize,
    directory: Option<PathBuf>,
    /// The filter of the ids at opening, once it is complete.
    made: Arc<Mutex<Option<Filter>>>,
}

impl Filters {
    /// Starts to load or build the filter of all ids of a store that was just opened. The tables have the ids up to
    /// `mark`.
    pub(crate) fn open<E: Engine>(shared: &Arc<Shared<E>>, directory: Option<&Path>, mark: u64, budget: usize) -> Self {
        let head = shared.log.last();
        let filters = Filters { budget, directory: directory.map(Path::to_owned), made: Arc::default() };
        if head == 0 {
            filters.put(Filter::new(budget));
            return filters;
        }
        let (shared, directory, made) = (shared.clone(), filters.directory.clone(), filters.made.clone());
        let _ = background::spawn_low("eventstore-filter", move || {
            match make(&shared, directory.as_deref(), mark, head, budget) {
                Ok(filter) => *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(filter),
                Err(Error::Closed) => {}
                Err(error) => {
                    tell!(warn, %error, "the filter of known ids could not be built; ids are looked up in the index")
                }
            }
        });
        filters
    }

    /// No filter, for a store without appends.
    pub(crate) fn none() -> Self {
        Filters { budget: 0, directory: None, made: Arc::default() }
    }

    fn put(&self, filter: Filter) {
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(filter);
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// Passes the filter to the writer, if it is ready.
    pub(crate) fn teach(&self, known: &mut Known) {
        if !known.knows_all()
            && let Some(filter) = self.made.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            known.learn(filter);
        }
    }

    /// Saves a filter of all ids for the next opening. Without it, the filter just takes longer to restore.
    pub(crate) fn save<E: Engine>(&self, shared: &Shared<E>, known: Option<Known>) {
        if shared.log.last() < FEWEST_TO_SAVE {
            return; // building it is as fast as reading it
        }
        let Some((directory, filter)) = self.directory.as_deref().zip(known.and_then(Known::into_filter)) else {
            return;
        };
        let save = || -> io::Result<()> {
            let version = shared.log.last();
            let digest = shared.digests.at(version).map_err(io::Error::other)?;
            let binding = Binding { store: shared.id, version, digest: *digest.as_bytes() };
            let new = directory.join(NEW_FILTER_FILE);
            let mut file = BufWriter::new(File::create(&new)?);
            filter.write(&binding, &mut file)?;
            file.flush()?;
            fs::rename(new, directory.join(FILTER_FILE))
        };
        if let Err(error) = save() {
            tell!(warn, %error, "the filter of known ids could not be saved; the next opening rebuilds it");
        }
    }
}

/// Deletes the filter of an index that is no longer trusted, durably: ids that were hidden there may be missing.
pub(crate) fn forget(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(FILTER_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_dir(directory)),
    }
}

/// Filters of fewer events are not saved, so that small stores stay small. Tests save all.
const FEWEST_TO_SAVE: u64 = if cfg!(test) { 1 } else { 10_000 };

/// With more events than this, the table of ids is faster to read than the log.
const MOST_FROM_LOG: u64 = 500_000;

/// Rows between two checks whether the store is being closed.
const ROWS: usize = 4096;

/// The filter of all ids and aggregates up to `head`.
fn make<E: Engine>(
    shared: &Shared<E>,
    directory: Option<&Path>,
    mark: u64,
    head: u64,
    budget: usize,
) -> Result<Filter> {
    let saved = directory.and_then(|directory| load(shared, &directory.join(FILTER_FILE), head, budget));
    let (reached, mut filter) = match saved {
        Some((version, filter)) if head - version <= MOST_FROM_LOG || version >= mark => (version, filter),
        // A damaged table may have too few of them. The log has all.
        _ => of_tables(shared, mark, budget)?.map_or((0, Filter::new(budget)), |filter| (mark, filter)),
    };
    let mut next = reached + 1;
    let mut key = Vec::new();
    while next <= head {
        shared.head()?; // `Closed` if the store is being closed
        let mut page = Page::default();
        shared.log.read(next..head + 1, 256 << 10, ROWS, &mut page).map_err(log_error)?;
        for (version, range) in &page.records {
            let leads = Leads::read(*version, &page.bytes[range.clone()])?;
            keys::write_id(&mut key, leads.id);
            filter.add(filter::hash(&key));
            if leads.revision == 1 {
                filter.add(filter::hash_of_aggregate(leads.aggregate_id));
            }
            next = version + 1;
        }
        if page.records.is_empty() {
            return Err(crate::format::record::corrupt(next, "it is missing from the log"));
        }
    }
    Ok(filter)
}

/// The filter that closing saved, if it belongs to this history.
fn load<E: Engine>(shared: &Shared<E>, path: &Path, head: u64, budget: usize) -> Option<(u64, Filter)> {
    let mut file = BufReader::new(File::open(path).ok()?);
    let is_ours = |binding: &Binding| {
        binding.store == shared.id
            && binding.version <= head
            && shared.digests.at(binding.version).is_ok_and(|digest| *digest.as_bytes() == binding.digest)
    };
    let (binding, filter) = Filter::read(is_ours, &mut file, budget).ok().flatten()?;
    Some((binding.version, filter))
}

/// The filter of all ids and aggregates in the tables; `None` if they have fewer ids than there are events up to the
/// mark.
fn of_tables<E: Engine>(shared: &Shared<E>, mark: u64, budget: usize) -> Result<Option<Filter>> {
    let mut filter = Filter::new(budget);
    let mut ids = 0;
    walk(shared, Table::Ids, |key| {
        filter.add(filter::hash(key));
        ids += 1;
    })?;
    let mut newest = String::new();
    walk(shared, Table::Aggregates, |key| {
        // An aggregate with many events has several entries.
        if let Some((id, _)) = keys::read_aggregate(key).filter(|(id, _)| *id != newest) {
            filter.add(filter::hash_of_aggregate(id));
            id.clone_into(&mut newest);
        }
    })?;
    Ok((ids >= mark).then_some(filter))
}

/// Visits every key of a table.
fn walk<E: Engine>(shared: &Shared<E>, table: Table, mut visit: impl FnMut(&[u8])) -> Result<()> {
    let mut from = keys::FIRST_KEY.to_vec();
    loop {
        shared.head()?; // `Closed` if the store is being closed
        let mut rows = 0;
        let mut last = Vec::new();
        shared.with_parts(|parts| {
            let range = KeyRange { first: &from, last: keys::LAST_KEY };
            parts.engine()?.snapshot()?.scan(table, range, Direction::Forward, |key, _| {
                visit(key);
                rows += 1;
                if rows < ROWS {
                    return ControlFlow::Continue(());
                }
                last.extend_from_slice(key);
                ControlFlow::Break(())
            })
        })?;
        if rows < ROWS {
            return Ok(());
        }
        from = last;
        from.push(0); // the smallest key after it
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::verify::tests::{log_of, with_entries};

    #[test]
    fn of_a_table_that_has_too_few_ids_no_filter_is_made() {
        let aggregates = ["a", "b", "c", "d"];
        for hidden in 0..=aggregates.len() {
            let shared = with_entries(&log_of(&aggregates), |table, nth| (table, nth) != (Table::Ids, hidden));
            let filter = make(&shared, None, 4, 4, 1 << 20).expect("made");
            for id in ["id-1", "id-2", "id-3", "id-4"] {
                let mut key = Vec::new();
                keys::write_id(&mut key, id);
                assert!(filter.may_have(filter::hash(&key)), "{id}, {hidden}");
            }
            for id in aggregates {
                assert!(filter.may_have(filter::hash_of_aggregate(id)), "{id}, {hidden}");
            }
        }
    }
}
