//! Anchors locate records: for each KiB in which a record begins, the first such record.

use crate::format::SEGMENT_HEADER;

/// Size of an anchor in a file, in bytes.
pub(crate) const LEN: usize = 8;
/// Each record begins at most this many bytes after its anchor.
pub(crate) const BLOCK: u64 = 1024;

/// The first record that begins in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// Its number, relative to the segment's first.
    pub(crate) number: u32,
    pub(crate) offset: u32,
}

/// Selects the records that are the first in their blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Placer {
    /// The block of the newest anchor, if there is one.
    block: Option<u64>,
}

impl Placer {
    /// Continues after these anchors.
    pub(crate) fn behind(anchors: &[Anchor]) -> Self {
        Placer { block: anchors.last().map(|anchor| u64::from(anchor.offset) / BLOCK) }
    }

    /// The anchor for a record at this offset, if it is the first in its block.
    pub(crate) fn place(&mut self, number: u64, offset: u64) -> Option<Anchor> {
        let block = Some(offset / BLOCK);
        let is_first = std::mem::replace(&mut self.block, block) != block;
        is_first.then_some(Anchor { number: number as u32, offset: offset as u32 })
    }

    /// Makes the next record an anchor, wherever it begins.
    pub(crate) fn force_next(&mut self) {
        self.block = None;
    }
}

/// The anchor from which a walk reaches this record.
pub(crate) fn at_or_before(anchors: &[Anchor], number: u64) -> Option<Anchor> {
    let index = behind(anchors, number);
    anchors[..index].last().copied()
}

/// The number of anchors up to this record number. Records in a log have similar sizes, so an interpolation search
/// starts at the expected place and widens from there: usually a few anchors in one cache line.
fn behind(anchors: &[Anchor], number: u64) -> usize {
    let is_before = |anchor: &Anchor| u64::from(anchor.number) <= number;
    let Some(last) = anchors.last() else { return 0 };
    let guess = u128::from(number) * anchors.len() as u128 / (u128::from(last.number) + 1);
    let guess = (guess as usize).min(anchors.len() - 1);
    let (mut low, mut high, mut step) = (guess, guess, 4);
    while low > 0 && !is_before(&anchors[low]) {
        low = low.saturating_sub(step);
        step *= 2;
    }
    step = 4;
    while high < anchors.len() && is_before(&anchors[high]) {
        high = (high + step).min(anchors.len());
        step *= 2;
    }
    low + anchors[low..high].partition_point(is_before)
}

/// The first anchor of a record with this number or a later one. All earlier records end before it.
pub(crate) fn at_or_behind(anchors: &[Anchor], number: u64) -> Option<Anchor> {
    let index = anchors.partition_point(|anchor| u64::from(anchor.number) < number);
    anchors.get(index).copied()
}

pub(crate) fn encode(anchors: &[Anchor]) -> Vec<u8> {
    anchors.iter().flat_map(|anchor| [anchor.number.to_le_bytes(), anchor.offset.to_le_bytes()]).flatten().collect()
}

pub(crate) fn decode(bytes: &[u8]) -> Vec<Anchor> {
    let (chunks, _) = bytes.as_chunks::<LEN>();
    let anchor = |chunk: &[u8; LEN]| {
        let [a, b, c, d, e, f, g, h] = *chunk;
        Anchor { number: u32::from_le_bytes([a, b, c, d]), offset: u32::from_le_bytes([e, f, g, h]) }
    };
    chunks.iter().map(anchor).collect()
}

/// Whether numbers and offsets are ascending and inside the content.
pub(crate) fn are_possible(anchors: &[Anchor], records: u64, end: u64) -> bool {
    let ascend = anchors.is_sorted_by(|a, b| a.number < b.number && a.offset < b.offset);
    let begin = anchors.first().is_none_or(|first| first.number == 0 && first.offset as usize > SEGMENT_HEADER);
    let last = anchors.last().is_none_or(|last| u64::from(last.number) < records && u64::from(last.offset) < end);
    ascend && begin && last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_record_of_each_block_is_found_from_its_anchor() {
        let mut placer = Placer::default();
        let offsets = [104, 400, 1023, 1024, 20_000, 20_001, 24_576];
        let anchors: Vec<_> =
            offsets.iter().enumerate().filter_map(|(number, at)| placer.place(number as u64, *at)).collect();
        let numbers: Vec<_> = anchors.iter().map(|anchor| anchor.number).collect();
        assert_eq!(numbers, [0, 3, 4, 6]);
        let found: Vec<_> = (0..8).filter_map(|n| at_or_before(&anchors, n)).map(|anchor| anchor.number).collect();
        assert_eq!(found, [0, 0, 0, 3, 4, 4, 6, 6]);
        let behind: Vec<_> = (0..8).filter_map(|n| at_or_behind(&anchors, n)).map(|anchor| anchor.number).collect();
        assert_eq!(behind, [0, 3, 3, 3, 4, 6, 6]);
        assert_eq!(decode(&encode(&anchors)), anchors);
        assert!(are_possible(&anchors, 7, 30_000) && !are_possible(&anchors, 6, 30_000));
        assert!(!are_possible(&anchors, 7, 24_576));
        assert_eq!(Placer::behind(&anchors).place(7, 24_600), None);
    }

    #[test]
    fn the_search_finds_the_same_wherever_it_begins() {
        // Evenly spaced, clustered at the start, clustered at the end, with a hole, few, one, none.
        let every = |step: u32, count: u32| (0..count).map(move |nth| nth * step);
        let cases: [Vec<u32>; 7] = [
            every(3, 500).collect(),
            every(1, 300).chain(every(100, 50).map(|n| 300 + n)).collect(),
            every(100, 50).chain(every(1, 300).map(|n| 5000 + n)).collect(),
            every(1, 10).chain(every(1, 10).map(|n| 100_000 + n)).collect(),
            vec![0, 7],
            vec![0],
            vec![],
        ];
        for numbers in cases {
            let anchors: Vec<_> = numbers.iter().map(|&number| Anchor { number, offset: 104 + number * 9 }).collect();
            let last = numbers.last().copied().unwrap_or_default();
            for number in (0..u64::from(last) + 3).chain([u64::from(u32::MAX), u64::MAX]) {
                let expected = anchors.partition_point(|anchor| u64::from(anchor.number) <= number);
                assert_eq!(behind(&anchors, number), expected, "{number} of {} anchors", anchors.len());
            }
        }
    }
}
