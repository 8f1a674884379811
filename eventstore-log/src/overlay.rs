use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::disk::read_all_at;
use crate::{Directory, File};

/// A read-only view of a directory of the file system: changes stay in memory and are dropped with it. Opening a log
/// changes little, such as zeros over a torn end.
#[derive(Clone, Debug)]
pub struct OverlayDirectory {
    path: PathBuf,
    changed: Arc<Mutex<BTreeMap<String, Changed>>>,
}

/// How a name was changed.
#[derive(Clone, Debug)]
enum Changed {
    Removed,
    /// It is this file now. Includes opened files, since they may be changed.
    File(Arc<Content>),
    Directory(OverlayDirectory),
}

impl OverlayDirectory {
    /// The directory at this path. It must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        OverlayDirectory { path: path.into(), changed: Arc::default() }
    }

    fn changed(&self) -> MutexGuard<'_, BTreeMap<String, Changed>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_there(&self, changed: &BTreeMap<String, Changed>, name: &str) -> bool {
        match changed.get(name) {
            Some(changed) => !matches!(changed, Changed::Removed),
            None => self.path.join(name).exists(),
        }
    }

    fn content_of(&self, changed: &mut BTreeMap<String, Changed>, name: &str) -> io::Result<Arc<Content>> {
        match changed.get(name) {
            Some(Changed::File(content)) => Ok(Arc::clone(content)),
            Some(Changed::Removed) => Err(io::ErrorKind::NotFound.into()),
            Some(Changed::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => {
                let base = self.path.join(name);
                fs::metadata(&base)?;
                let content = Arc::new(Content { base: Some(base), changes: OnceLock::new() });
                changed.insert(name.to_owned(), Changed::File(Arc::clone(&content)));
                Ok(content)
            }
        }
    }
}

impl Directory for OverlayDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        let changed = self.changed();
        let mut names: Vec<String> = match fs::read_dir(&self.path) {
            Ok(entries) => {
                let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
                names.filter_map(io::Result::transpose).collect::<io::Result<_>>()?
            }
            // A subdirectory created here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        names.retain(|name| !changed.contains_key(name));
        names.extend(
            changed.iter().filter(|(_, changed)| !matches!(changed, Changed::Removed)).map(|(name, _)| name.clone()),
        );
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let content = self.content_of(&mut self.changed(), name)?;
        Ok(Arc::new(OverlayFile::of(content)?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut changed = self.changed();
        if self.is_there(&changed, name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let content = Arc::new(Content::default());
        changed.insert(name.to_owned(), Changed::File(Arc::clone(&content)));
        Ok(Arc::new(OverlayFile::of(content)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut changed = self.changed();
        let content = self.content_of(&mut changed, from)?;
        changed.insert(from.to_owned(), Changed::Removed);
        changed.insert(to.to_owned(), Changed::File(content));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut changed = self.changed();
        if !self.is_there(&changed, name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        changed.insert(name.to_owned(), Changed::Removed);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn keeps_changes(&self) -> bool {
        false
    }

    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        let mut changed = self.changed();
        let made = || Changed::Directory(OverlayDirectory::new(self.path.join(name)));
        match changed.entry(name.to_owned()).or_insert_with(made) {
            Changed::Directory(directory) => Ok(Arc::new(directory.clone())),
            Changed::File(_) | Changed::Removed => Err(io::ErrorKind::NotADirectory.into()),
        }
    }
}

const PAGE: u64 = 4096;

/// The content of a file, as long as the directory exists.
#[derive(Debug, Default)]
struct Content {
    /// The file on disk; `None` for a new file.
    base: Option<PathBuf>,
    /// Created with the first change.
    changes: OnceLock<Mutex<Changes>>,
}

/// A file of which only changed pages are in memory.
#[derive(Debug)]
struct OverlayFile {
    content: Arc<Content>,
    base: Option<fs::File>,
}

#[derive(Debug)]
struct Changes {
    len: u64,
    /// Everything after this offset is no longer that of the file on disk.
    base_len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl OverlayFile {
    fn of(content: Arc<Content>) -> io::Result<Self> {
        let base = content.base.as_ref().map(fs::File::open).transpose()?;
        Ok(OverlayFile { content, base })
    }

    fn base_len(&self) -> io::Result<u64> {
        self.base.as_ref().map_or(Ok(0), |base| Ok(base.metadata()?.len()))
    }

    fn change(&self) -> io::Result<MutexGuard<'_, Changes>> {
        let len = self.base_len()?;
        let changes =
            self.content.changes.get_or_init(|| Mutex::new(Changes { len, base_len: len, pages: BTreeMap::new() }));
        Ok(changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_base(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        self.base.as_ref().map_or(Ok(0), |base| read_all_at(base, out, at, len))
    }

    /// A page in its current state, at the length that it would have without the end of the file.
    fn page(&self, changes: &Changes, number: u64) -> io::Result<Box<[u8]>> {
        if let Some(page) = changes.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = Vec::with_capacity(PAGE as usize);
        let in_base = changes.base_len.saturating_sub(number * PAGE).min(PAGE);
        self.read_base(&mut page, number * PAGE, in_base as usize)?;
        page.resize(PAGE as usize, 0);
        Ok(page.into())
    }
}

impl File for OverlayFile {
    fn len(&self) -> io::Result<u64> {
        match self.content.changes.get() {
            Some(changes) => Ok(changes.lock().unwrap_or_else(PoisonError::into_inner).len),
            None => self.base_len(),
        }
    }

    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        let Some(changes) = self.content.changes.get() else { return self.read_base(out, at, len) };
        let changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (out.len(), changes.len.min(at.saturating_add(len as u64)));
        let mut next = at;
        while next < end {
            let (number, offset) = (next / PAGE, (next % PAGE) as usize);
            let count = ((end - next) as usize).min(PAGE as usize - offset);
            let page = self.page(&changes, number).inspect_err(|_| out.truncate(start))?;
            out.extend_from_slice(&page[offset..offset + count]);
            next += count as u64;
        }
        Ok(out.len() - start)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        // An empty write does not extend a file.
        if bytes.is_empty() {
            return Ok(());
        }
        let mut changes = self.change()?;
        let mut rest = bytes;
        let mut next = at;
        while !rest.is_empty() {
            let (number, offset) = (next / PAGE, (next % PAGE) as usize);
            let count = rest.len().min(PAGE as usize - offset);
            let mut page = self.page(&changes, number)?;
            page[offset..offset + count].copy_from_slice(&rest[..count]);
            changes.pages.insert(number, page);
            (rest, next) = (&rest[count..], next + count as u64);
        }
        changes.len = changes.len.max(next);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = self.change()?;
        changes.len = len;
        changes.base_len = changes.base_len.min(len);
        changes.pages.split_off(&len.div_ceil(PAGE));
        if let Some(page) = changes.pages.get_mut(&(len / PAGE)) {
            page[(len % PAGE) as usize..].fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::DiskDirectory;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Read(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = 0..20_000u64;
        prop_oneof![
            (at.clone(), prop::collection::vec(any::<u8>(), 0..9000)).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            at.clone().prop_map(Step::SetLen),
            (at, 0..20_000usize).prop_map(|(at, len)| Step::Read(at, len)),
        ]
    }

    #[test]
    fn a_write_of_nothing_changes_nothing() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        fs::write(temporary.path().join("file"), "base").expect("written");
        let overlay = OverlayDirectory::new(temporary.path()).open("file").expect("opened");
        overlay.write_at(&[], 5000).expect("written");
        assert_eq!(overlay.len().expect("seen"), 4);
    }

    proptest! {
        #[test]
        fn a_file_is_as_one_that_is_changed_and_its_base_stays(
            base in prop::collection::vec(any::<u8>(), 0..15_000),
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let temporary = tempfile::tempdir().expect("temporary directory");
            let path = temporary.path().join("file");
            fs::write(&path, &base).expect("written");
            fs::write(temporary.path().join("changed"), &base).expect("written");
            let changed = DiskDirectory::new(temporary.path()).open("changed").expect("opened");
            let overlay = OverlayDirectory::new(temporary.path()).open("file").expect("opened");
            for step in steps.into_iter().chain([Step::Read(0, 40_000)]) {
                match step {
                    Step::Write(at, bytes) => {
                        for file in [&changed, &overlay] {
                            file.write_at(&bytes, at).expect("written");
                        }
                    }
                    Step::SetLen(len) => {
                        for file in [&changed, &overlay] {
                            file.set_len(len).expect("set");
                        }
                    }
                    Step::Read(at, len) => {
                        let mut read = [Vec::new(), vec![]];
                        for (file, read) in [&changed, &overlay].into_iter().zip(&mut read) {
                            prop_assert_eq!(file.read_at(read, at, len).expect("read"), read.len());
                        }
                        prop_assert!(read[0] == read[1]);
                    }
                }
                prop_assert_eq!(changed.len().expect("seen"), overlay.len().expect("seen"));
            }
            prop_assert!(fs::read(&path).expect("read") == base);
        }
    }

    #[test]
    fn names_are_made_changed_and_removed_in_memory_alone() {
        let temporary = tempfile::tempdir().expect("temporary directory");
        for name in ["one", "two", "three"] {
            fs::write(temporary.path().join(name), name).expect("written");
        }
        let overlay = OverlayDirectory::new(temporary.path());
        overlay.remove("one").expect("removed");
        assert_eq!(overlay.open("one").expect_err("it is gone").kind(), io::ErrorKind::NotFound);
        assert_eq!(overlay.create("two").expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
        overlay.create("one").expect("made").write_at(b"new", 0).expect("written");
        overlay.rename("two", "three").expect("renamed");
        overlay.subdirectory("below").expect("made").create("four").expect("made");
        let read = |directory: &dyn Directory, name: &str| {
            let mut bytes = Vec::new();
            directory.open(name).expect("opened").read_at(&mut bytes, 0, 100).expect("read");
            String::from_utf8(bytes).expect("text")
        };
        let mut names = overlay.list().expect("listed");
        names.sort();
        assert_eq!(names, ["below", "one", "three"]);
        assert_eq!((read(&overlay, "one"), read(&overlay, "three")), ("new".to_owned(), "two".to_owned()));
        assert_eq!(overlay.subdirectory("below").expect("there").list().expect("listed"), ["four"]);
        let disk = DiskDirectory::new(temporary.path());
        assert_eq!(disk.list().expect("listed").len(), 3);
        for name in ["one", "two", "three"] {
            assert_eq!(read(&disk, name), name);
        }
    }
}
