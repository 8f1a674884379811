//! A growing Bloom filter that tells which ids of events and aggregates are certainly new, so that most appends need no
//! look-up.
//!
//! It consists of layers of 64-byte blocks. Each layer is twice as large as the one before. An id sets eight bits of
//! one block, one in each of its eight words. It may be there if some layer has all eight. So a look-up costs one hash,
//! and one cache line per layer. The more layers are still to come, the earlier a layer counts as full. This costs
//! little, because most bytes are in the last layer. With all layers full, less than 2 % of new ids are false
//! positives.
//!
//! The leading bits of the hash choose the block in a layer. Hence the ids of one block of a small layer are those of
//! some adjacent blocks of a large one, and a layer can be merged into another of the same size or larger without
//! knowing the ids.
//!
//! A false "new" would store an id twice. So a saved filter is used only if every checksum, every length and its
//! binding match. See [`Filter::write`] for the format.

use std::io;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const BLOCK_BYTES: usize = 64;
const FIRST_LAYER_BYTES: usize = 64 << 10;
/// Bits per id when the last layer that the budget allows is full.
const BITS_PER_ID: u64 = 10;
/// Additional bits per id for each layer that may still come.
const BITS_MORE: u64 = 3;
const MOST_BITS_PER_ID: u64 = 24;
/// Any odd number with random-looking bits.
const SPREAD: u64 = 0xd1b5_4a32_d192_ed03;

const MAGIC: [u8; 8] = *b"esfilter";
/// Format 1 had no aggregates.
const FORMAT: u32 = 2;
/// Blocks per checksum.
const CHUNK_BLOCKS: usize = (64 << 10) / BLOCK_BYTES;
/// Magic, format, binding, number of ids, number of layers.
const HEADER_BYTES: usize = 8 + 4 + 56 + 8 + 4;
/// Of each layer in the header: blocks, load.
const LAYER_BYTES: usize = 8 + 8;
/// More than any budget allows.
const MOST_LAYERS: usize = 256;

/// What a saved filter belongs to: it has the ids of this store's events up to this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) store: [u8; 16],
    pub(crate) version: u64,
    pub(crate) digest: [u8; 32],
}

impl Binding {
    fn to_bytes(self) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[..16].copy_from_slice(&self.store);
        bytes[16..24].copy_from_slice(&self.version.to_be_bytes());
        bytes[24..].copy_from_slice(&self.digest);
        bytes
    }
}

/// The hash of an id, from its key in the id index.
pub(crate) fn hash(id_key: &[u8]) -> u64 {
    xxh3_64(id_key)
}

/// The hash of an aggregate.
pub(crate) fn hash_of_aggregate(aggregate_id: &str) -> u64 {
    xxh3_64_with_seed(aggregate_id.as_bytes(), 1)
}

/// The set of event ids and aggregates that a store may have. Anything not in it is certainly new.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// In ascending order of size.
    layers: Vec<Layer>,
    budget: usize,
    ids: u64,
    /// The layer for the next id.
    open: usize,
}

#[derive(Clone, Debug)]
struct Layer {
    blocks: Vec<Block>,
    /// The number of ids that would fill it to this degree. More than were added, if a smaller layer was merged into
    /// it.
    load: u64,
    /// The load at which it is full.
    full: u64,
}

/// One cache line.
#[repr(align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Block([u64; 8]);

impl Filter {
    /// An empty filter that takes at most this many bytes of memory. With less than one block it has no bits, and every
    /// id may be there.
    pub(crate) fn new(budget: usize) -> Self {
        Filter { layers: Vec::new(), budget, ids: 0, open: 0 }
    }

    /// Adds an id, by the [`hash`] of its key. When the budget is used up, ids still go into the last layer: false
    /// positives become more frequent, but an id that is there never looks new.
    pub(crate) fn add(&mut self, hash: u64) {
        self.ids += 1;
        while self.layers.get(self.open).is_none_or(|layer| layer.load >= layer.full) {
            if self.open + 1 < self.layers.len() {
                self.open += 1;
            } else if let Some(bytes) = self.next_layer_bytes() {
                self.layers.push(Layer::new(bytes, self.budget));
                self.open = self.layers.len() - 1;
            } else {
                break;
            }
        }
        if let Some(layer) = self.layers.get_mut(self.open) {
            layer.add(hash);
        }
    }

    /// Whether the id whose key has this hash may have been added. If false, it certainly was not.
    pub(crate) fn may_have(&self, hash: u64) -> bool {
        if self.layers.is_empty() {
            return self.ids > 0;
        }
        let mask = Block::of(hash);
        // Half of all ids are in the last layer.
        self.layers.iter().rev().any(|layer| layer.blocks[layer.block(hash)].has(&mask))
    }

    /// The number of ids added, counting repetitions.
    #[cfg(test)]
    pub(crate) fn len(&self) -> u64 {
        self.ids
    }

    /// Its memory in bytes, and the size of its file without checksums.
    pub(crate) fn len_bytes(&self) -> usize {
        self.layers.iter().map(Layer::len_bytes).sum()
    }

    /// The size of the next layer, if there is room for one.
    fn next_layer_bytes(&self) -> Option<usize> {
        let bytes = match self.layers.last() {
            Some(last) => last.len_bytes() * 2,
            None => first_layer_bytes(self.budget),
        };
        (bytes > 0 && self.len_bytes() + bytes <= self.budget).then_some(bytes)
    }

    /// Merges another filter into this one. It stays within the budget if the other's budget was not larger. A layer
    /// without room is merged into the least filled one that can take it.
    pub(crate) fn merge_newer(&mut self, newer: Filter) {
        // A filter without room for any layer has no information, so neither has the sum.
        let knows_all = [&*self, &newer].iter().all(|filter| filter.ids == 0 || !filter.layers.is_empty());
        self.ids += newer.ids;
        self.open = 0;
        if !knows_all {
            self.layers.clear();
            self.budget = 0;
            return;
        }
        // The smaller filter is merged into the larger, from its large layers to its small ones.
        let mut rest = newer.layers;
        if rest.iter().map(Layer::len_bytes).sum::<usize>() > self.len_bytes() {
            std::mem::swap(&mut rest, &mut self.layers);
        }
        rest.iter_mut().chain(&mut self.layers).for_each(|layer| layer.full = capacity(layer.len_bytes(), self.budget));
        while let Some(layer) = rest.pop() {
            self.merge_layer(layer);
        }
    }

    fn merge_layer(&mut self, layer: Layer) {
        let alike = self.layers.iter().filter(|other| other.blocks.len() == layer.blocks.len()).count();
        let has_room = self.len_bytes() + layer.len_bytes() <= self.budget;
        if let Some(into) = self.layers.iter_mut().find(|into| into.has_room_for(&layer)) {
            into.merge(&layer);
        } else if has_room && alike < 2 {
            self.push(layer);
        } else if let Some(bytes) = self.next_layer_bytes().filter(|bytes| *bytes > layer.len_bytes()) {
            // Use a larger layer instead of one more of the same size, or look-ups would get slower and slower.
            let mut larger = Layer::new(bytes, self.budget);
            match layer.load_in(&larger) {
                Some(_) => larger.merge(&layer),
                None => larger = layer,
            }
            self.push(larger);
        } else {
            let takers = self.layers.iter_mut().filter_map(|into| Some((into.fill_with(&layer)?, into)));
            match takers.min_by_key(|(fill, _)| *fill) {
                Some((_, into)) => into.merge(&layer),
                // Filters with different budgets, both smaller than a first layer.
                None => self.push(layer),
            }
        }
    }

    fn push(&mut self, layer: Layer) {
        self.layers.push(layer);
        self.layers.sort_by_key(|layer| layer.blocks.len());
    }

    /// Writes the filter, with what its ids belong to.
    ///
    /// The format is a header: magic, format, binding, the number of ids, the number of layers, and for each layer its
    /// number of blocks and its load; then a checksum of all that. Then the blocks, layer by layer in pieces of 64 KiB,
    /// each followed by its checksum, which also covers the header, the layer's number and the piece's number. Numbers
    /// are big-endian, the words of blocks little-endian.
    pub(crate) fn write(&self, bound_to: &Binding, out: &mut dyn io::Write) -> io::Result<()> {
        let mut header = Vec::with_capacity(HEADER_BYTES + self.layers.len() * LAYER_BYTES);
        header.extend(MAGIC);
        header.extend(FORMAT.to_be_bytes());
        header.extend(bound_to.to_bytes());
        header.extend(self.ids.to_be_bytes());
        header.extend((self.layers.len() as u32).to_be_bytes());
        for layer in &self.layers {
            header.extend((layer.blocks.len() as u64).to_be_bytes());
            header.extend(layer.load.to_be_bytes());
        }
        out.write_all(&header)?;
        out.write_all(&crc32fast::hash(&header).to_be_bytes())?;
        let mut bytes = Vec::with_capacity(CHUNK_BLOCKS * BLOCK_BYTES + 4);
        for (number, layer) in self.layers.iter().enumerate() {
            for (chunk, blocks) in layer.blocks.chunks(CHUNK_BLOCKS).enumerate() {
                bytes.clear();
                bytes.extend(blocks.iter().flat_map(|block| block.0).flat_map(u64::to_le_bytes));
                bytes.extend(chunk_checksum(&header, number, chunk, &bytes).to_be_bytes());
                out.write_all(&bytes)?;
            }
        }
        Ok(())
    }

    /// Reads what [`write`](Filter::write) wrote; `None` in case of any doubt: it is damaged or cut short, something
    /// follows it, `bound_to` rejects its binding, or it is larger than the budget.
    ///
    /// # Errors
    ///
    /// Read errors, except an unexpected end of the file.
    pub(crate) fn read(
        bound_to: impl FnOnce(&Binding) -> bool,
        input: &mut dyn io::Read,
        budget: usize,
    ) -> io::Result<Option<(Binding, Self)>> {
        match read(bound_to, input, budget) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            outcome => outcome,
        }
    }
}

fn read(
    bound_to: impl FnOnce(&Binding) -> bool,
    input: &mut dyn io::Read,
    budget: usize,
) -> io::Result<Option<(Binding, Filter)>> {
    let mut header = vec![0; HEADER_BYTES];
    input.read_exact(&mut header)?;
    let mut fields = Fields(&header);
    let is_ours = fields.take() == MAGIC && u32::from_be_bytes(fields.take()) == FORMAT;
    let binding = Binding { store: fields.take(), version: u64::from_be_bytes(fields.take()), digest: fields.take() };
    let ids = u64::from_be_bytes(fields.take());
    let count = u32::from_be_bytes(fields.take()) as usize;
    if !is_ours || count > MOST_LAYERS {
        return Ok(None);
    }
    header.resize(HEADER_BYTES + count * LAYER_BYTES, 0);
    input.read_exact(&mut header[HEADER_BYTES..])?;
    // Nothing in the header is trusted before this check.
    if read_checksum(input)? != crc32fast::hash(&header) || !bound_to(&binding) {
        return Ok(None);
    }
    let mut fields = Fields(&header[HEADER_BYTES..]);
    let sizes: Vec<_> =
        (0..count).map(|_| (u64::from_be_bytes(fields.take()), u64::from_be_bytes(fields.take()))).collect();
    let blocks = sizes.iter().try_fold(0_u64, |sum, (blocks, _)| sum.checked_add(*blocks));
    let fits = blocks.is_some_and(|blocks| blocks <= (budget / BLOCK_BYTES) as u64);
    let is_sound = sizes.iter().all(|(blocks, _)| *blocks > 0) && sizes.is_sorted_by_key(|(blocks, _)| *blocks);
    if !fits || !is_sound || (count == 0 && ids > 0) {
        return Ok(None);
    }
    let mut layers = Vec::with_capacity(count);
    let mut bytes = vec![0; CHUNK_BLOCKS * BLOCK_BYTES];
    for (number, (blocks, load)) in sizes.into_iter().enumerate() {
        let mut layer = Layer { load, ..Layer::new(blocks as usize * BLOCK_BYTES, budget) };
        for (chunk, blocks) in layer.blocks.chunks_mut(CHUNK_BLOCKS).enumerate() {
            let bytes = &mut bytes[..blocks.len() * BLOCK_BYTES];
            input.read_exact(bytes)?;
            if read_checksum(input)? != chunk_checksum(&header, number, chunk, bytes) {
                return Ok(None);
            }
            let mut words = Fields(bytes);
            blocks.iter_mut().flat_map(|block| &mut block.0).for_each(|word| *word = u64::from_le_bytes(words.take()));
        }
        layers.push(layer);
    }
    let is_at_end = loop {
        match input.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            rest => break rest? == 0,
        }
    };
    Ok(is_at_end.then_some((binding, Filter { layers, budget, ids, open: 0 })))
}

/// Reads fields one after the other. There must be enough bytes.
struct Fields<'bytes>(&'bytes [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the bytes are as many as the fields");
        self.0 = rest;
        *field
    }
}

fn read_checksum(input: &mut dyn io::Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn chunk_checksum(header: &[u8], layer: usize, chunk: usize, bytes: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(header);
    checksum.update(&(layer as u64).to_be_bytes());
    checksum.update(&(chunk as u64).to_be_bytes());
    checksum.update(bytes);
    checksum.finalize()
}

fn first_layer_bytes(budget: usize) -> usize {
    FIRST_LAYER_BYTES.min(budget / BLOCK_BYTES * BLOCK_BYTES)
}

/// The number of ids that fill a layer of this size, if all layers may have this many bytes in total.
fn capacity(bytes: usize, budget: usize) -> u64 {
    let (mut to_come, mut next, mut sum) = (0, bytes.saturating_mul(2), bytes.saturating_mul(2));
    // A layer is added if there is room for it and for those before it, which together are as large, minus one of the
    // first size.
    let first = first_layer_bytes(budget);
    while next < usize::MAX && sum.saturating_add(next).saturating_sub(first) <= budget {
        (to_come, next, sum) = (to_come + 1, next.saturating_mul(2), sum.saturating_add(next));
    }
    let bits = (BITS_PER_ID + BITS_MORE * to_come).min(MOST_BITS_PER_ID);
    (bytes as u64).saturating_mul(8) / bits
}

impl Layer {
    fn new(bytes: usize, budget: usize) -> Self {
        Layer { blocks: vec![Block::default(); bytes / BLOCK_BYTES], load: 0, full: capacity(bytes, budget) }
    }

    fn len_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// The block of an id, chosen by the leading half of its hash.
    fn block(&self, hash: u64) -> usize {
        (((hash >> 32) * self.blocks.len() as u64) >> 32) as usize
    }

    fn add(&mut self, hash: u64) {
        let block = self.block(hash);
        self.blocks[block].add(&Block::of(hash));
        self.load += 1;
    }

    /// The load that this layer would add to `into`, if it can be merged into it. A layer of the same size adds its own
    /// load; in a larger one, each of its blocks becomes several.
    fn load_in(&self, into: &Layer) -> Option<u64> {
        let (blocks, own) = (into.blocks.len(), self.blocks.len());
        (blocks >= own && blocks % own == 0).then(|| self.load.saturating_mul((blocks / own) as u64))
    }

    fn has_room_for(&self, other: &Layer) -> bool {
        other.load_in(self).is_some_and(|load| self.load.saturating_add(load) <= self.full)
    }

    /// The fill level with another layer merged in, if possible. Only for comparisons.
    fn fill_with(&self, other: &Layer) -> Option<u128> {
        let load = self.load.saturating_add(other.load_in(self)?);
        Some(u128::from(load) * 1024 / u128::from(self.full.max(1)))
    }

    fn merge(&mut self, other: &Layer) {
        self.load = self.load.saturating_add(other.load_in(self).unwrap_or_default());
        let times = self.blocks.len() / other.blocks.len();
        for (blocks, other) in self.blocks.chunks_mut(times).zip(&other.blocks) {
            blocks.iter_mut().for_each(|block| block.add(other));
        }
    }
}

impl Block {
    /// One bit in each word, from bits of the hash that do not choose the block.
    fn of(hash: u64) -> Self {
        let bits = hash.wrapping_mul(SPREAD);
        Block(std::array::from_fn(|word| 1 << (bits >> (16 + 6 * word) & 63)))
    }

    fn add(&mut self, other: &Block) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    fn has(&self, other: &Block) -> bool {
        self.0.iter().zip(other.0).fold(0, |missing, (word, other)| missing | (other & !word)) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BINDING: Binding = Binding { store: [7; 16], version: 42, digest: [9; 32] };

    fn hash_of(id: u64) -> u64 {
        let mut key = [2; 9];
        key[1..].copy_from_slice(&id.to_be_bytes());
        hash(&key)
    }

    fn filter(budget: usize, ids: std::ops::Range<u64>) -> Filter {
        let mut filter = Filter::new(budget);
        ids.for_each(|id| filter.add(hash_of(id)));
        filter
    }

    fn written(filter: &Filter) -> Vec<u8> {
        let mut bytes = Vec::new();
        filter.write(&BINDING, &mut bytes).expect("written");
        bytes
    }

    fn read_back(bytes: &[u8], budget: usize) -> Option<(Binding, Filter)> {
        Filter::read(|_| true, &mut &*bytes, budget).expect("a slice has no errors")
    }

    fn has_all(filter: &Filter, ids: std::ops::Range<u64>) -> bool {
        ids.into_iter().all(|id| filter.may_have(hash_of(id)))
    }

    /// The rate of false positives among new ids, in thousandths of a percent.
    fn false_positives(filter: &Filter) -> u64 {
        (1 << 40..(1 << 40) + 100_000).filter(|&id| filter.may_have(hash_of(id))).count() as u64
    }

    /// Whether the next id begins a new layer or overfills the last.
    fn is_full(filter: &Filter) -> bool {
        filter.layers.iter().all(|layer| layer.load >= layer.full)
    }

    #[test]
    fn few_new_ids_look_known_when_it_is_full_and_the_budget_is_kept() {
        let budgets = [64 << 10, 200 << 10, 448 << 10, 1 << 20, 2 << 20, 16 << 20];
        // The last two take a minute without optimization.
        for budget in budgets.into_iter().take(if cfg!(debug_assertions) { 4 } else { 6 }) {
            let mut filter = Filter::new(budget);
            let mut id = 0;
            while !(is_full(&filter) && filter.next_layer_bytes().is_none()) {
                filter.add(hash_of(id));
                id += 1;
            }
            assert_eq!(filter.len(), id);
            assert!(filter.len_bytes() <= budget && filter.len_bytes() > budget / 4, "{}", filter.len_bytes());
            let bits = filter.len_bytes() as u64 * 8 / id;
            assert!((10..13).contains(&bits), "{bits} bits an id in {budget} bytes");
            let rate = false_positives(&filter);
            assert!(rate < 2_000, "{rate} of 100,000 in {} layers of {budget} bytes", filter.layers.len());
            assert!(has_all(&filter, 0..id));
        }
    }

    #[test]
    fn it_grows_by_layers_that_are_twice_as_large_and_stays_within_the_budget() {
        let sizes = |filter: &Filter| filter.layers.iter().map(Layer::len_bytes).collect::<Vec<_>>();
        assert_eq!(sizes(&filter(1 << 20, 0..1)), [64 << 10]);
        assert_eq!(sizes(&filter(1 << 20, 0..40_000)), [64 << 10, 128 << 10]);
        let over = filter(512 << 10, 0..2_000_000);
        assert_eq!(sizes(&over), [64 << 10, 128 << 10, 256 << 10]);
        assert!(has_all(&over, 0..2_000_000), "more than it was made for, and none is forgotten");
        assert_eq!(sizes(&filter(1000, 0..5000)), [960]);
    }

    #[test]
    fn without_room_for_a_block_nothing_is_certain() {
        let mut nothing = Filter::new(63);
        assert!(!nothing.may_have(hash_of(1)), "there is nothing at all");
        nothing.add(hash_of(1));
        assert_eq!((nothing.len(), nothing.len_bytes()), (1, 0));
        assert!(nothing.may_have(hash_of(1)) && nothing.may_have(hash_of(2)));
        assert!(read_back(&written(&nothing), 63).is_none());
        let mut some = filter(1 << 20, 0..10);
        some.merge_newer(nothing);
        assert!(has_all(&some, 0..100));
        some.add(hash_of(3));
        assert!(has_all(&some, 0..100));
    }

    #[test]
    fn a_filter_comes_back_as_it_was_written() {
        for (budget, ids) in [(1 << 20, 0), (1 << 20, 100), (1 << 20, 100_000), (1000, 10_000)] {
            let before = filter(budget, 0..ids);
            let bytes = written(&before);
            let (binding, mut after) = read_back(&bytes, budget).expect("it is sound");
            assert_eq!((binding, after.len(), after.len_bytes()), (BINDING, ids, before.len_bytes()));
            assert!(has_all(&after, 0..ids));
            assert_eq!(written(&after), bytes);
            // It continues where it was.
            let mut on = before.clone();
            (ids..2 * ids).for_each(|id| [&mut on, &mut after].into_iter().for_each(|filter| filter.add(hash_of(id))));
            assert_eq!(written(&on), written(&after));
        }
    }

    #[test]
    fn whatever_it_is_bound_to_is_asked_for_and_a_refusal_is_obeyed() {
        let bytes = written(&filter(1000, 0..10));
        let mut asked = None;
        let read = Filter::read(|binding| asked.replace(*binding).is_some(), &mut &*bytes, 1000);
        assert!(read.expect("no error").is_none());
        assert_eq!(asked, Some(BINDING));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let bytes = written(&filter(1000, 0..100));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read_back(&damaged, 1000).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_cut_short_or_goes_on_is_refused() {
        let bytes = written(&filter(1000, 0..100));
        for length in 0..bytes.len() {
            assert!(read_back(&bytes[..length], 1000).is_none(), "{length} bytes");
        }
        assert!(read_back(&[&bytes[..], &[0]].concat(), 1000).is_none());
        assert!(read_back(&bytes, 1000).is_some());
        assert!(read_back(&bytes, 900).is_none(), "it is larger than the budget");
    }

    #[test]
    fn pieces_of_another_place_or_filter_are_refused() {
        let piece = CHUNK_BLOCKS * BLOCK_BYTES + 4;
        let bytes = written(&filter(1 << 20, 0..40_000));
        let begin = bytes.len() - 3 * piece;
        let mut swapped = bytes.clone();
        swapped[begin + piece..].rotate_left(piece);
        assert!(read_back(&swapped, 1 << 20).is_none(), "two pieces of one layer changed places");
        let mut other = Vec::new();
        let older = Binding { version: 41, ..BINDING };
        filter(1 << 20, 0..40_000).write(&older, &mut other).expect("written");
        other[begin..].copy_from_slice(&bytes[begin..]);
        assert!(read_back(&other, 1 << 20).is_none(), "the pieces of a filter that is bound to something else");
    }

    #[test]
    fn errors_of_reading_are_told() {
        struct Fails;
        impl io::Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("no disk"))
            }
        }
        assert!(Filter::read(|_| true, &mut Fails, 1000).is_err());
    }

    #[test]
    fn the_format_is_pinned() {
        let bytes = written(&filter(64, 1..2));
        assert_eq!(bytes.len(), HEADER_BYTES + LAYER_BYTES + 4 + BLOCK_BYTES + 4);
        assert_eq!(crc32fast::hash(&bytes[..bytes.len() - 4]), 2156657897, "a change of it needs another number");
    }

    #[test]
    fn small_filters_merge_into_the_room_that_there_is() {
        let mut all = filter(1 << 20, 0..50_000);
        let before = all.layers.len();
        // Many sessions, each with some ids of its own.
        for session in 0..20 {
            let ids = 50_000 + session * 100;
            all.merge_newer(filter(1 << 20, ids..ids + 100));
        }
        assert!(all.layers.len() <= before + 1, "{} layers after {before}", all.layers.len());
        assert!(has_all(&all, 0..52_000));
        assert_eq!(all.len(), 52_000);
        let rate = false_positives(&all);
        assert!(rate < 2_000, "{rate} of 100,000");
    }

    #[test]
    fn many_merges_leave_few_layers() {
        let mut all = Filter::new(1 << 20);
        for session in 0..100 {
            all.merge_newer(filter(1 << 20, session * 2000..(session + 1) * 2000));
        }
        assert!(all.layers.len() <= 8 && all.len_bytes() <= 1 << 20, "{} layers", all.layers.len());
        assert!(has_all(&all, 0..200_000));
        let mut two = filter(1 << 20, 0..300_000);
        two.merge_newer(filter(1 << 20, 300_000..600_000));
        assert!(two.len_bytes() <= 1 << 20);
        assert!(has_all(&two, 0..600_000), "more than the budget is for");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn no_id_that_was_added_ever_looks_new(
            budget in prop_oneof![Just(0_usize), 1_usize..5000, 60_000_usize..600_000],
            newer_budget in prop_oneof![Just(0_usize), 1_usize..5000, 60_000_usize..600_000],
            counts in (0_u64..30_000, 0_u64..30_000, 0_u64..2_000),
        ) {
            let (first, second) = (counts.0, counts.0 + counts.1);
            let last = second + counts.2;
            let mut all = filter(budget, 0..first);
            let newer = filter(newer_budget, first..second);
            all.merge_newer(newer);
            if budget >= FIRST_LAYER_BYTES && newer_budget >= FIRST_LAYER_BYTES && newer_budget <= budget {
                prop_assert!(all.len_bytes() <= budget, "{} of {budget}", all.len_bytes());
            }
            (second..last).for_each(|id| all.add(hash_of(id)));
            prop_assert_eq!(all.len(), last);
            prop_assert!(has_all(&all, 0..last));
            let bytes = written(&all);
            match read_back(&bytes, all.len_bytes()) {
                Some((_, again)) => prop_assert!(has_all(&again, 0..last)),
                None => prop_assert_eq!(all.len_bytes(), 0, "it knows nothing"),
            }
        }
    }
}
