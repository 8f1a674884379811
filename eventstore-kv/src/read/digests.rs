//! The running digest of the log, and its marks: from a mark, the digest at a later version can be computed with little
//! work.

use std::sync::Arc;

use eventstore_api::{Bytes, Digest, Result};
use eventstore_log::{Log, Page, Segment};

use crate::error::log_error;
use crate::format::record::{self, corrupt};
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, background};

/// A new mark is set after this many events or bytes.
const EVENTS_BETWEEN_MARKS: u64 = 1024;
const BYTES_BETWEEN_MARKS: usize = 1 << 20;

/// The number of bytes read and hashed at once.
const STEP_BYTES: usize = 256 << 10;

/// A version, and the digest after it.
pub(crate) type Marked = (u64, Digest);

/// The digests of a store's history.
pub(crate) struct Digests {
    log: Log,
    state: Mutex<State>,
    events_behind: AtomicU64,
    bytes_behind: AtomicU64,
    is_following: AtomicBool,
}

struct State {
    /// The latest computed digest.
    at: Marked,
    /// The marks that no sealed segment has, in order.
    marks: Vec<Marked>,
    events_since_mark: u64,
    bytes_since_mark: usize,
}

impl Digests {
    /// Starts from the newest checkpoint of the log, or from its newest sealed segment.
    pub(crate) fn open(log: Log, tail: Option<&[u8]>) -> Self {
        let marks = tail.and_then(read_marks).unwrap_or_default();
        let last = || {
            let sealed = log.segments().into_iter().rev().find(|segment| segment.is_sealed)?;
            let blob = log.segment_blob(sealed.records.start).ok().flatten()?;
            read_marks(&blob)?.last().copied()
        };
        let at = marks.last().copied().or_else(last).unwrap_or((0, Digest::EMPTY));
        let state = State { at, marks, events_since_mark: 0, bytes_since_mark: 0 };
        Digests {
            log,
            state: Mutex::new(state),
            events_behind: AtomicU64::new(0),
            bytes_behind: AtomicU64::new(0),
            is_following: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest at a version that the log has.
    ///
    /// # Errors
    ///
    /// Those of reading the log.
    pub(crate) fn at(&self, version: u64) -> Result<Digest> {
        loop {
            let mut state = self.lock();
            if state.at.0 == version {
                return Ok(state.at.1);
            }
            if state.at.0 > version {
                break;
            }
            state.step(&self.log, version)?; // other callers get a turn between two steps
        }
        let (mut at, mut digest) = self.mark_before(version)?;
        while at < version {
            (at, digest) = hash(&self.log, at, digest, version, STEP_BYTES, |_, _, _| ())?;
        }
        Ok(digest)
    }

    /// The last mark at or before a version.
    fn mark_before(&self, version: u64) -> Result<Marked> {
        let newest = |marks: &[Marked]| marks[..marks.partition_point(|mark| mark.0 <= version)].last().copied();
        if let Some(mark) = newest(&self.lock().marks) {
            return Ok(mark);
        }
        let segments = self.log.segments();
        let sealed = segments.iter().rev().filter(|segment| segment.is_sealed && segment.records.start <= version);
        for segment in sealed {
            let blob = match self.log.segment_blob(segment.records.start) {
                // An earlier mark works as well.
                Err(eventstore_log::Error::Corrupt { .. }) => continue,
                blob => blob.map_err(log_error)?,
            };
            if let Some(mark) = blob.and_then(|blob| newest(&read_marks(&blob)?)) {
                return Ok(mark);
            }
        }
        Ok((0, Digest::EMPTY))
    }

    /// Continues the digest in the background, if so much was committed since that computing it on demand would take
    /// time.
    pub(crate) fn follow(self: &Arc<Self>, events: u64, bytes: u64) {
        let events = self.events_behind.fetch_add(events, Ordering::Relaxed) + events;
        let bytes = self.bytes_behind.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let is_far = events >= EVENTS_BETWEEN_MARKS || bytes >= BYTES_BETWEEN_MARKS as u64;
        if !is_far || self.is_following.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        let _ = background::spawn_low("eventstore-digest", move || {
            this.events_behind.store(0, Ordering::Relaxed);
            this.bytes_behind.store(0, Ordering::Relaxed);
            let followed = this.at(this.log.last());
            this.is_following.store(false, Ordering::Release);
            if let Err(error) = followed {
                tell!(warn, %error, "the digest does not follow the log");
            }
        });
    }

    /// The stored digest marks of the events of a segment.
    ///
    /// # Errors
    ///
    /// Those of reading the segment's footer.
    pub(crate) fn marks_of(&self, segment: &Segment) -> Result<Vec<Marked>> {
        if segment.is_sealed {
            let blob = self.log.segment_blob(segment.records.start).map_err(log_error)?;
            return Ok(blob.and_then(|blob| read_marks(&blob)).unwrap_or_default());
        }
        let state = self.lock();
        let mut marks: Vec<Marked> =
            state.marks.iter().copied().filter(|mark| segment.records.contains(&mark.0)).collect();
        if segment.records.contains(&state.at.0) && marks.last().is_none_or(|last| last.0 < state.at.0) {
            marks.push(state.at);
        }
        Ok(marks)
    }

    /// The digest marks to store in a sealed segment with these versions. The last one is at its last event.
    pub(crate) fn of_segment(&self, versions: std::ops::Range<u64>) -> Result<Vec<u8>> {
        let last = versions.end - 1;
        let end = (last, self.at(last)?);
        let mut state = self.lock();
        let (before, rest): (Vec<Marked>, Vec<Marked>) = state.marks.iter().partition(|mark| mark.0 <= last);
        let mut marks: Vec<Marked> =
            before.into_iter().filter(|mark| (versions.start..last).contains(&mark.0)).collect();
        marks.push(end);
        state.marks = rest;
        Ok(write_marks(&marks))
    }

    /// The data to store in a checkpoint of the log at this version.
    pub(crate) fn at_checkpoint(&self, version: u64) -> Result<Vec<u8>> {
        let end = (version, self.at(version)?);
        let mut marks: Vec<Marked> = self.lock().marks.iter().copied().filter(|mark| mark.0 < version).collect();
        marks.push(end);
        Ok(write_marks(&marks))
    }
}

impl State {
    /// Continues by some events, but not beyond a version.
    fn step(&mut self, log: &Log, version: u64) -> Result<()> {
        let State { at, marks, events_since_mark, bytes_since_mark } = self;
        *at = hash(log, at.0, at.1, version, STEP_BYTES, |version, digest, bytes| {
            *events_since_mark += 1;
            *bytes_since_mark += bytes;
            if *events_since_mark >= EVENTS_BETWEEN_MARKS || *bytes_since_mark >= BYTES_BETWEEN_MARKS {
                marks.push((version, digest));
                (*events_since_mark, *bytes_since_mark) = (0, 0);
            }
        })?;
        Ok(())
    }
}

/// Hashes some events after `at`, at most up to `until`.
fn hash(
    log: &Log,
    at: u64,
    digest: Digest,
    until: u64,
    bytes: usize,
    mut hashed: impl FnMut(u64, Digest, usize),
) -> Result<Marked> {
    let mut page = Page::default();
    log.read(at + 1..until + 1, bytes, usize::MAX, &mut page).map_err(log_error)?;
    let Page { bytes, records } = page;
    let bytes = Bytes::from(bytes);
    let mut reached = (at, digest);
    for (version, range) in records {
        let len = range.len();
        reached = (version, reached.1.chain(&record::decode(version, &bytes, range)?));
        hashed(reached.0, reached.1, len);
    }
    if reached.0 == at {
        return Err(corrupt(at + 1, "it is missing from the log"));
    }
    Ok(reached)
}

const MARK_LEN: usize = 8 + 32;

fn write_marks(marks: &[Marked]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(marks.len() * MARK_LEN);
    for (version, digest) in marks {
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(digest.as_bytes());
    }
    bytes
}

/// `None` if the bytes cannot come from [`write_marks`].
pub(crate) fn read_marks(bytes: &[u8]) -> Option<Vec<Marked>> {
    let marks = bytes.chunks_exact(MARK_LEN);
    let is_whole = marks.remainder().is_empty();
    let read = |mark: &[u8]| {
        let (version, digest) = mark.split_first_chunk()?;
        Some((u64::from_le_bytes(*version), Digest::from_bytes(digest.try_into().ok()?)))
    };
    let marks: Vec<Marked> = marks.map(read).collect::<Option<_>>()?;
    (is_whole && marks.is_sorted_by(|one, next| one.0 < next.0)).then_some(marks)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::io;
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use eventstore_api::{Error, Event, RecordedEvent, Version};
    use eventstore_log::{Directory, File, Group, Known, MemoryDirectory, Opened, Options};

    use super::*;
    use crate::format::record::Micros;

    /// An event with the id `id-{number}`.
    pub(crate) fn event(number: u64, aggregate_id: &str, data_len: usize) -> Event {
        let data = vec![number as u8; data_len];
        Event::builder("Tested", aggregate_id).id(format!("id-{number}")).data(data).build().expect("valid")
    }

    pub(crate) fn open_log(files: impl Directory + 'static, segment_size: u64) -> Opened {
        let mut options = Options::default();
        (options.segment_size, options.space_ahead) = (segment_size, 0);
        Log::open(Arc::new(files), [0; 16], &options, Known { synced: 0 }, u64::MAX, &mut |_, _| {}).expect("opened")
    }

    /// Appends events in groups of this size. Their revisions continue those before.
    pub(crate) fn append(opened: &mut Opened, revisions: &mut HashMap<String, u64>, events: &[Event], in_group: usize) {
        let appender = opened.appender.as_mut().expect("nothing is damaged");
        let mut group = Group::default();
        for events in events.chunks(in_group) {
            group.begin(opened.log.last() + 1);
            for event in events {
                let revision = revisions.entry(event.aggregate_id().to_owned()).or_default();
                *revision += 1;
                group.push(&[&record::header(event, *revision, Micros::from(UNIX_EPOCH)), event.bytes()]);
            }
            appender.commit(&mut group, true).expect("committed");
        }
    }

    /// A log, and the expected digest at each version, from 0 on.
    struct Fixture<F> {
        files: F,
        opened: Opened,
        revisions: HashMap<String, u64>,
        chain: Vec<Digest>,
        longest: usize,
    }

    impl<F: Directory + Clone + 'static> Fixture<F> {
        fn new(files: F) -> Self {
            let opened = open_log(files.clone(), 1 << 20);
            Fixture { files, opened, revisions: HashMap::new(), chain: vec![Digest::EMPTY], longest: 0 }
        }

        fn append(&mut self, events: u64, data_len: usize) {
            let first = self.chain.len() as u64;
            let aggregate_of = |number: u64| format!("aggregate-{}", number % 5);
            let events: Vec<_> =
                (first..first + events).map(|number| event(number, &aggregate_of(number), data_len)).collect();
            let mut revisions = self.revisions.clone();
            append(&mut self.opened, &mut self.revisions, &events, 100);
            for (event, version) in events.into_iter().zip(first..) {
                self.longest = self.longest.max(record::HEADER_LEN + event.bytes().len());
                let revision = revisions.entry(event.aggregate_id().to_owned()).or_default();
                *revision += 1;
                let recorded = RecordedEvent::new(Version::new(version), (*revision).into(), UNIX_EPOCH, event);
                self.chain.push(self.chain[version as usize - 1].chain(&recorded));
            }
        }

        /// Appends many small events and some of more than 1 MiB.
        fn append_mixed(&mut self) {
            for (events, data_len) in [(2500, 20), (1, 1 << 20), (15, 100_000), (1, 3 << 19), (2000, 20)] {
                self.append(events, data_len);
            }
        }

        fn last(&self) -> u64 {
            self.opened.log.last()
        }

        fn digests(&self) -> Digests {
            Digests::open(self.opened.log.clone(), self.opened.tail.as_ref().map(|tail| tail.blob.as_slice()))
        }

        fn reopen(&mut self) {
            self.opened.appender.take();
            self.opened = open_log(self.files.clone(), 1 << 20);
        }

        fn check(&self, digests: &Digests, version: u64) {
            assert_eq!(digests.at(version).expect("read"), self.chain[version as usize], "{version}");
        }

        fn check_marks(&self, marks: &[Marked]) {
            assert!(marks.is_sorted_by(|one, next| one.0 < next.0));
            for (version, digest) in marks {
                assert_eq!(*digest, self.chain[*version as usize], "{version}");
            }
        }

        /// Writes a checkpoint, as the index does.
        fn checkpoint(&self, digests: &Digests) {
            let blob = digests.at_checkpoint(self.last()).expect("read");
            self.check_marks(&read_marks(&blob).expect("sound"));
            let of_segment = &mut |versions| digests.of_segment(versions).expect("read");
            self.opened.log.checkpoint(self.opened.log.position(), &blob, of_segment).expect("written");
        }

        /// All marks stored anywhere, in order.
        fn all_marks(&self, digests: &Digests) -> Vec<Marked> {
            self.opened.log.segments().iter().flat_map(|segment| digests.marks_of(segment).expect("read")).collect()
        }

        fn bytes_between(&self, versions: std::ops::Range<u64>) -> usize {
            let mut page = Page::default();
            let mut next = versions.start;
            while next < versions.end {
                self.opened.log.read(next..versions.end, usize::MAX, usize::MAX, &mut page).expect("read");
                next = page.records.last().expect("read").0 + 1;
            }
            page.contents().map(|(_, content)| content.len()).sum()
        }
    }

    #[test]
    fn the_digest_of_any_version_is_that_of_the_chain() {
        let mut fixture = Fixture::new(MemoryDirectory::default());
        fixture.append_mixed();
        let last = fixture.last();
        // Ahead of what was requested before, and behind it.
        for step in [1, 1024, last] {
            let digests = fixture.digests();
            for version in (0..=last).step_by(step as usize).chain([last]).chain((0..=last).rev().step_by(997)) {
                fixture.check(&digests, version);
            }
        }
        let beyond = fixture.digests().at(last + 1);
        assert!(matches!(beyond, Err(Error::Corrupt { version: Some(at), .. }) if at.get() == last + 1), "{beyond:?}");
    }

    #[test]
    fn marks_are_at_most_so_many_events_or_bytes_apart() {
        let mut fixture = Fixture::new(MemoryDirectory::default());
        for _ in 0..2 {
            fixture.append_mixed();
            let digests = fixture.digests();
            fixture.check(&digests, fixture.last());
            for is_checkpoint in [false, true] {
                if is_checkpoint {
                    fixture.checkpoint(&digests);
                }
                let marks = fixture.all_marks(&digests);
                fixture.check_marks(&marks);
                assert_eq!(marks.last().map(|mark| mark.0), Some(fixture.last()));
                let mut before = 0;
                for (version, _) in marks {
                    assert!(version - before <= EVENTS_BETWEEN_MARKS);
                    // The last one may be larger than all others together.
                    assert!(fixture.bytes_between(before + 1..version) < BYTES_BETWEEN_MARKS, "{before}..{version}");
                    before = version;
                }
            }
            fixture.reopen();
        }
    }

    #[test]
    fn a_sealed_segment_has_its_own_marks_and_the_checkpoint_the_others() {
        let mut fixture = Fixture::new(MemoryDirectory::default());
        fixture.append_mixed();
        let digests = fixture.digests();
        fixture.checkpoint(&digests);
        let segments = fixture.opened.log.segments();
        let sealed = segments.iter().filter(|segment| segment.is_sealed);
        assert!(sealed.clone().count() > 3);
        for segment in sealed {
            let marks = digests.marks_of(segment).expect("read");
            fixture.check_marks(&marks);
            assert!(marks.iter().all(|mark| segment.records.contains(&mark.0)));
            assert_eq!(marks.last().map(|mark| mark.0 + 1), Some(segment.records.end));
        }
        let newest = segments.last().expect("one");
        assert!(!newest.is_sealed);
        fixture.checkpoint(&digests);
        fixture.reopen();
        let tail = read_marks(&fixture.opened.tail.as_ref().expect("a checkpoint").blob).expect("sound");
        assert!(tail.iter().all(|mark| newest.records.contains(&mark.0)), "those of sealed segments are in these");
        assert_eq!(tail.last().map(|mark| mark.0), Some(fixture.last()));
    }

    #[test]
    fn it_begins_with_a_checkpoint_or_a_sealed_segment_or_nothing() {
        let counted = Counted::default();
        let mut fixture = Fixture::new(counted.clone());
        fixture.append_mixed();
        fixture.checkpoint(&fixture.digests());
        let checkpoint = fixture.last();
        fixture.append(700, 20);
        fixture.reopen();
        let tail = fixture.opened.tail.take().expect("a checkpoint").blob;
        let segments = fixture.opened.log.segments();
        let sealed = segments.iter().rfind(|segment| segment.is_sealed).expect("one").records.end - 1;
        let damaged = [&tail[..tail.len() - 1], &[]].concat();
        for (tail, begins_at) in
            [(Some(tail.as_slice()), checkpoint), (None, sealed), (Some(&damaged), sealed), (Some(&[]), sealed)]
        {
            let digests = Digests::open(fixture.opened.log.clone(), tail);
            assert_eq!(digests.lock().at, (begins_at, fixture.chain[begins_at as usize]));
            for version in (0..=fixture.last()).rev().step_by(501).chain([checkpoint, sealed, fixture.last()]) {
                fixture.check(&digests, version);
            }
        }
        let mut unsealed = Fixture::new(MemoryDirectory::default());
        unsealed.append(30, 20);
        assert_eq!(unsealed.digests().lock().at, (0, Digest::EMPTY));
    }

    #[test]
    fn of_an_older_version_little_is_hashed() {
        let counted = Counted::default();
        let mut fixture = Fixture::new(counted.clone());
        fixture.append_mixed();
        fixture.append(30, 100_000);
        fixture.checkpoint(&fixture.digests());
        fixture.append(300, 20);
        fixture.checkpoint(&fixture.digests());
        fixture.reopen();
        let digests = fixture.digests();
        // The walk to the first record of each part, and the footer.
        let beside = 64 << 10;
        let most = BYTES_BETWEEN_MARKS + fixture.longest + beside;
        let mut most_read = 0;
        for version in (1..=fixture.last()).step_by(101) {
            let before = counted.read();
            fixture.check(&digests, version);
            let read = counted.read() - before;
            assert!(read <= most, "{read} bytes for version {version}");
            most_read = most_read.max(read);
        }
        assert!(most_read > 1000, "it was counted");
    }

    #[test]
    fn damage_is_told_and_behind_the_next_mark_the_digest_is_known_again() {
        let mut fixture = Fixture::new(MemoryDirectory::default());
        fixture.append(3000, 20);
        let digests = fixture.digests();
        fixture.check(&digests, 3000);
        let file = fixture.files.open("0000000001-0.seg").expect("the first segment");
        file.write_at(&[0xee; 16], file.len().expect("its length") / 2).expect("written");
        let asked = (1..=3000).step_by(73).chain([1023, 1024, 3000]);
        let (known, unknown): (Vec<_>, Vec<_>) = asked.partition(|&version| digests.at(version).is_ok());
        assert!(unknown.first().is_some_and(|first| *first > 1), "{unknown:?}");
        assert!(unknown.is_sorted() && unknown.last() == Some(&1023), "{unknown:?}");
        assert!(known.contains(&1024));
        known.into_iter().for_each(|version| fixture.check(&digests, version));
    }

    #[test]
    fn it_follows_in_the_background_once_much_was_committed() {
        let mut fixture = Fixture::new(MemoryDirectory::default());
        fixture.append(2000, 20);
        let digests = Arc::new(fixture.digests());
        digests.follow(1000, 1000);
        assert_eq!(digests.lock().at.0, 0, "that is little");
        for (events, bytes) in [(24, 0), (1, 1 << 20), (1024, 1)] {
            digests.follow(events, bytes);
            let until = Instant::now() + Duration::from_secs(30);
            while digests.lock().at.0 < fixture.last() || digests.is_following.load(Ordering::Acquire) {
                assert!(Instant::now() < until, "it does not follow");
                std::thread::sleep(Duration::from_millis(1));
            }
            fixture.check(&digests, fixture.last());
            fixture.append(100, 20);
        }
        assert!(digests.lock().marks.len() >= 2);
    }

    #[test]
    fn only_marks_are_read_as_marks() {
        let one = (7, Digest::from_bytes([1; 32]));
        let two = (9, Digest::from_bytes([2; 32]));
        let bytes = write_marks(&[one, two]);
        assert_eq!(bytes[..40], [&[7, 0, 0, 0, 0, 0, 0, 0][..], &[1; 32]].concat());
        assert_eq!(read_marks(&bytes), Some(vec![one, two]));
        assert_eq!(read_marks(&[]), Some(vec![]));
        assert_eq!(read_marks(&bytes[1..]), None);
        assert_eq!(read_marks(&bytes[..79]), None);
        assert_eq!(read_marks(&write_marks(&[two, one])), None);
        assert_eq!(read_marks(&write_marks(&[one, one])), None);
    }

    /// Files in memory that count the bytes read.
    #[derive(Clone, Debug, Default)]
    struct Counted {
        files: MemoryDirectory,
        read: Arc<AtomicU64>,
    }

    impl Counted {
        fn read(&self) -> usize {
            self.read.load(Ordering::Relaxed) as usize
        }

        fn count(&self, file: Arc<dyn File>) -> Arc<dyn File> {
            Arc::new(CountedFile { file, read: self.read.clone() })
        }
    }

    impl Directory for Counted {
        fn list(&self) -> io::Result<Vec<String>> {
            self.files.list()
        }

        fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
            Ok(self.count(self.files.open(name)?))
        }

        fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
            Ok(self.count(self.files.create(name)?))
        }

        fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            self.files.rename(from, to)
        }

        fn remove(&self, name: &str) -> io::Result<()> {
            self.files.remove(name)
        }

        fn sync(&self) -> io::Result<()> {
            self.files.sync()
        }

        fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
            self.files.subdirectory(name)
        }

        fn is_memory(&self) -> bool {
            true
        }
    }

    #[derive(Debug)]
    struct CountedFile {
        file: Arc<dyn File>,
        read: Arc<AtomicU64>,
    }

    impl File for CountedFile {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
            let read = self.file.read_at(out, at, len)?;
            self.read.fetch_add(read as u64, Ordering::Relaxed);
            Ok(read)
        }

        fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
            self.file.write_at(bytes, at)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn sync_all(&self) -> io::Result<()> {
            self.file.sync_all()
        }
    }
}
