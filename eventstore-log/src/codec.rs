//! Zstandard compression, one block at a time.

#[cfg(not(feature = "zstd"))]
use crate::Error;
use crate::Result;

/// Whether this build can compress and decompress.
pub(crate) fn check() -> Result<()> {
    #[cfg(feature = "zstd")]
    return Ok(());
    #[cfg(not(feature = "zstd"))]
    Err(Error::unsupported("compression: this program was built without the feature `zstd`"))
}

/// Compresses blocks.
pub(crate) struct Encoder {
    #[cfg(feature = "zstd")]
    compressor: zstd::bulk::Compressor<'static>,
    bytes: Vec<u8>,
}

#[cfg(feature = "zstd")]
const LEVEL: i32 = 3;

#[cfg(feature = "zstd")]
impl Encoder {
    pub(crate) fn new() -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(LEVEL);
        let compressor = compressor.map_err(|error| crate::Error::io("begin to compress", "a segment", error))?;
        Ok(Encoder { compressor, bytes: Vec::new() })
    }

    /// The compressed bytes, if there are fewer of them.
    pub(crate) fn encode(&mut self, plain: &[u8]) -> Option<&[u8]> {
        self.bytes.clear();
        self.bytes.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let is_smaller = self.compressor.compress_to_buffer(plain, &mut self.bytes).is_ok_and(|len| len < plain.len());
        is_smaller.then_some(&self.bytes)
    }
}

#[cfg(not(feature = "zstd"))]
impl Encoder {
    pub(crate) fn new() -> Result<Self> {
        check().map(|()| Encoder { bytes: Vec::new() })
    }

    pub(crate) fn encode(&mut self, _: &[u8]) -> Option<&[u8]> {
        self.bytes.clear();
        None
    }
}

/// Decompresses blocks.
#[derive(Default)]
pub(crate) struct Decoder {
    #[cfg(feature = "zstd")]
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    bytes: Vec<u8>,
}

impl Decoder {
    /// The plain bytes, if there are at most `most`.
    #[cfg(feature = "zstd")]
    pub(crate) fn decode(&mut self, compressed: &[u8], most: usize) -> Option<&[u8]> {
        if self.decompressor.is_none() {
            self.decompressor = zstd::bulk::Decompressor::new().ok();
        }
        self.bytes.clear();
        // Decompression writes no further than this capacity.
        self.bytes.reserve(most);
        let len = self.decompressor.as_mut()?.decompress_to_buffer(compressed, &mut self.bytes).ok()?;
        (len <= most).then_some(&self.bytes)
    }

    #[cfg(not(feature = "zstd"))]
    pub(crate) fn decode(&mut self, _: &[u8], _: usize) -> Option<&[u8]> {
        self.bytes.clear();
        None
    }
}
