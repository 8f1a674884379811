use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::anchors::{Anchor, Placer};
use crate::error::is_full;
use crate::format::{SEGMENT_HEADER, SegmentHeader};
use crate::segment::{Segment, State};
use crate::space::{Made, Newest};
use crate::{CommitError, Error, File, Group, Log, Position, Result, cache, cut};

/// The only writer of a log. Dropping it closes the log for appends: it waits for background work and frees the
/// preallocated space.
pub struct Appender {
    log: Log,
    tip: Tip,
    placer: Placer,
    /// The anchors of the group that is being written.
    fresh: Vec<Anchor>,
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("log", &self.log).finish_non_exhaustive()
    }
}

/// The position of the next group.
#[derive(Debug)]
pub(crate) struct Tip {
    pub(crate) position: Position,
    /// The newest segment, its file, and its maximum size.
    pub(crate) newest: Option<(Arc<Segment>, Arc<dyn File>, u64)>,
    pub(crate) log_len: u64,
}

/// A segment that begins with the group that is being written.
struct Begun {
    header: SegmentHeader,
    made: Made,
    capacity: u64,
}

impl Appender {
    pub(crate) fn new(log: Log, tip: Tip) -> Self {
        let placer = tip.newest.as_ref().map_or(Placer::default(), |(segment, ..)| {
            segment.state().anchors.as_deref().map(Placer::behind).unwrap_or_default()
        });
        Appender { log, tip, placer, fresh: Vec::new() }
    }

    /// Writes the group as one frame. Its first record must follow the last one of the log. Readers see it when this
    /// returns `Ok`.
    ///
    /// With `sync`, it returns when the group, and everything before it, is on stable storage. An empty group writes no
    /// frame; with `sync` it is a [`Log::sync`].
    /// # Errors
    ///
    /// `NotWritten` if nothing of the group is in the log, such as `Full` if there is no room; the log remains usable.
    /// `Unknown` if a write or sync failed: the log accepts nothing more, and the group may be there when the log is
    /// opened again.
    pub fn commit(&mut self, group: &mut Group, sync: bool) -> Result<Position, CommitError> {
        self.check(group).map_err(CommitError::NotWritten)?;
        if group.is_empty() {
            let synced = if sync { self.log.sync() } else { Ok(()) };
            return synced.map(|()| self.tip.position).map_err(CommitError::NotWritten);
        }
        let last = group.next() - 1;
        let begun = self.make_room(group.frame_len()).map_err(CommitError::NotWritten)?;
        let position = self.write(group, begun.as_ref())?;
        let file = begun.as_ref().map(|begun| &begun.made.file);
        self.log.0.set_written(last, file);
        tell!(trace, name: "written", record = last, "written");
        if sync {
            self.log.0.sync_to(last).map_err(CommitError::Unknown)?;
        }
        self.publish(group, begun, position);
        Ok(position)
    }

    /// Stops appending.
    pub fn close(self) {
        drop(self);
    }

    fn check(&self, group: &Group) -> Result<()> {
        self.log.0.check_poison()?;
        if let Some(refused) = group.refused() {
            return Err(Error::unsupported(refused));
        }
        let next = self.tip.position.next;
        if !group.is_empty() && group.first() != next {
            return Err(Error::unsupported(format!("a group from record {} on, before record {next}", group.first())));
        }
        Ok(())
    }

    /// Makes room for the group, filled with zeros: in the newest segment if it fits, otherwise in a new one.
    fn make_room(&mut self, len: u64) -> Result<Option<Begun>> {
        match &self.tip.newest {
            Some((.., capacity)) if self.tip.position.offset + len <= *capacity => {
                self.log.0.make_room(self.tip.position.offset + len, *capacity)?;
                Ok(None)
            }
            _ => self.begin_segment(SEGMENT_HEADER as u64 + len).map(Some),
        }
    }

    fn begin_segment(&mut self, len: u64) -> Result<Begun> {
        let shared = &self.log.0;
        let position = self.tip.position;
        // A frame in a later segment proves that the earlier segments are synced.
        shared.sync_to(position.record())?;
        // The background thread may be creating the same segment.
        shared.space.wait();
        shared.check_poison()?;
        let number = position.segment + 1;
        let made = match shared.space.take_next(number) {
            Some(made) => self.grow(made, len)?,
            None => shared.new_segment(number, len)?,
        };
        let capacity = shared.options.capacity(number).max(len);
        let header = SegmentHeader {
            id: shared.id,
            number,
            first: position.next,
            salt: new_salt(number),
            generation: 0,
            chain: position.chain,
            is_compressed: false,
        };
        Ok(Begun { header, made, capacity })
    }

    /// Makes room for the first group in a preallocated segment.
    fn grow(&self, mut made: Made, len: u64) -> Result<Made> {
        let shared = &self.log.0;
        let filled = crate::space::fill_zeros(&*made.file, made.len, len);
        match filled {
            Ok(()) => {
                made.len = made.len.max(len);
                Ok(made)
            }
            Err(error) => {
                let error = shared.not_filled(&*made.file, made.len, error);
                shared.space.put_next(made);
                Err(error)
            }
        }
    }

    /// A single write: the frame, preceded by the segment's header if it is the first.
    fn write(&self, group: &mut Group, begun: Option<&Begun>) -> Result<Position, CommitError> {
        let position = self.tip.position;
        let (segment, file, salt, offset, frame_at) = match (begun, &self.tip.newest) {
            (Some(begun), _) => (begun.header.number, &begun.made.file, begun.header.salt, 0, SEGMENT_HEADER as u64),
            (None, Some((segment, file, _))) => {
                (position.segment, file, segment.header.salt, position.offset, position.offset)
            }
            (None, None) => return Err(CommitError::NotWritten(Error::without_segment())),
        };
        let header = begun.map(|begun| begun.header.encode());
        let about = (salt, self.log.0.synced(), position.chain);
        let (written, chain) = group.with_frame(about, header.as_ref(), |bytes| file.write_at(bytes, offset));
        written.map_err(|error| self.not_written(begun, error))?;
        let offset = frame_at + group.frame_len();
        Ok(Position { segment, offset, frame: frame_at, next: group.next(), chain })
    }

    /// After a lack of space, whatever was written of the group is removed; after any other error, nobody knows what
    /// was written.
    fn not_written(&self, begun: Option<&Begun>, error: std::io::Error) -> CommitError {
        let shared = &self.log.0;
        let is_full = is_full(&error);
        let error = Error::io("write to", "the newest segment", error);
        let taken_away = match begun {
            _ if !is_full => {
                shared.poison(&error);
                return CommitError::Unknown(error);
            }
            None => shared.cut_to(self.tip.position.offset),
            Some(begun) => {
                let removed = || {
                    cut::erase(&*begun.made.file)?;
                    shared.change_names(|files| files.remove(&begun.made.name))
                };
                shared.sync_file(removed, &begun.made.name)
            }
        };
        match taken_away {
            Ok(()) => CommitError::NotWritten(error),
            Err(_) => CommitError::Unknown(error),
        }
    }

    fn publish(&mut self, group: &Group, begun: Option<Begun>, position: Position) {
        let frame_at = position.offset - group.frame_len();
        if let Some(begun) = begun {
            self.move_on(begun);
        }
        let shared = &self.log.0;
        let Some((segment, file, capacity)) = &self.tip.newest else { return };
        let first = group.first() - segment.header.first;
        let placer = &mut self.placer;
        let offsets = group.record_offsets().enumerate();
        self.fresh.clear();
        self.fresh.extend(offsets.filter_map(|(index, at)| placer.place(first + index as u64, frame_at + at)));
        let mut state = segment.state_mut();
        (state.next, state.end, state.chain) = (position.next, position.offset, position.chain);
        state.frame = position.frame;
        state.len = shared.space.filled().max(position.offset);
        state.anchors.get_or_insert_default().extend_from_slice(&self.fresh);
        if state.file.is_none() {
            state.file = Some(Arc::clone(file));
        }
        drop(state);
        shared.publish(position.record());
        self.tip.log_len += group.frame_len();
        self.tip.position = position;
        let newest =
            Newest { segment: position.segment, end: position.offset, capacity: *capacity, log_len: self.tip.log_len };
        shared.make_ahead(newest);
    }

    /// Switches to another newest segment. Readers see no record of it yet.
    fn move_on(&mut self, begun: Begun) {
        let shared = &self.log.0;
        if let Some((segment, file, _)) = self.tip.newest.take() {
            let mut state = segment.state_mut();
            state.file = None;
            drop(state);
            cache::put_file(segment.key(shared), file);
        }
        let Begun { header, made, capacity } = begun;
        tell!(trace, name: "moved_on", segment = header.number, "a new segment begun");
        shared.space.begin((header.number, &made.name), &made.file, made.len);
        let segment = Arc::new(Segment::new(header.clone(), State::new(&header)));
        shared.add_segment(Arc::clone(&segment));
        self.placer = Placer::default();
        self.tip.log_len += SEGMENT_HEADER as u64;
        self.tip.newest = Some((segment, made.file, capacity));
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        let end = self.tip.position.offset;
        self.log.0.release_space(end);
        if let Some((segment, ..)) = self.tip.newest.as_ref().filter(|(segment, ..)| !segment.header.is_compressed) {
            let mut state = segment.state_mut();
            state.len = if self.log.0.is_memory { end } else { self.log.0.space.filled().max(end) };
        }
    }
}

/// A number that no other segment has, with overwhelming probability.
fn new_salt(number: u64) -> u64 {
    RandomState::new().hash_one((number, std::time::SystemTime::now()))
}
