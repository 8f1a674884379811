use crate::{Error, Result, codec};

/// Options of a log: its layout, and its use of space and memory.
#[derive(Clone, Debug)]
pub struct Options {
    /// The largest size of a segment, in bytes. The first segment has 64 KiB; each next one is twice as large, up to
    /// this size. A larger group gets a segment of its own. Default: 64 MiB; at least 64 KiB, at most 4 GiB - 1.
    pub segment_size: u64,
    /// The most space to preallocate after the end of the log, in the background, in bytes; 0 for none. Default: 128
    /// MiB.
    pub space_ahead: u64,
    /// The minimum size of the process's block cache, in bytes. Default: 128 MiB.
    pub cache_size: usize,
    /// How [`Log::compress`](crate::Log::compress) compresses full segments. Default: [`Compression::None`]. Compressed
    /// segments are readable with any value.
    pub compression: Compression,
}

/// The compression of full segments, to which nothing more is appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// Zstandard, in blocks of 64 KiB. Needs the feature `zstd`.
    Zstd,
}

/// The size of the first segment.
pub(crate) const FIRST_SEGMENT: u64 = 64 << 10;

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_size: 64 << 20,
            space_ahead: 128 << 20,
            cache_size: 128 << 20,
            compression: Compression::None,
        }
    }
}

impl Options {
    pub(crate) fn validate(&self) -> Result<()> {
        if self.compression == Compression::Zstd {
            codec::check()?;
        }
        if (FIRST_SEGMENT..=u64::from(u32::MAX)).contains(&self.segment_size) {
            return Ok(());
        }
        Err(Error::unsupported(format!("a segment size of {} bytes", self.segment_size)))
    }

    /// The size of the segment with this number, in bytes.
    pub(crate) fn capacity(&self, number: u64) -> u64 {
        let doublings = u32::try_from(number.saturating_sub(1)).unwrap_or(u32::MAX).min(32);
        (FIRST_SEGMENT << doublings).min(self.segment_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_double_up_to_their_size() {
        let options = Options { segment_size: 300 << 10, ..Options::default() };
        let sizes: Vec<_> = [1, 2, 3, 4, u64::MAX].map(|number| options.capacity(number) >> 10).to_vec();
        assert_eq!(sizes, [64, 128, 256, 300, 300]);
    }

    #[test]
    fn compression_needs_its_feature() {
        let options = Options { compression: Compression::Zstd, ..Options::default() };
        let validated = options.validate().map_err(|error| error.to_string());
        match cfg!(feature = "zstd") {
            true => assert_eq!(validated, Ok(())),
            false => assert!(validated.is_err_and(|error| error.contains("the feature `zstd`"))),
        }
    }

    #[test]
    fn sizes_that_offsets_cannot_tell_are_refused() {
        for (size, is_right) in [(65535, false), (65536, true), (u64::from(u32::MAX), true), (1 << 32, false)] {
            let options = Options { segment_size: size, ..Options::default() };
            assert_eq!(options.validate().is_ok(), is_right, "{size}");
        }
    }
}
