//! Numbers and byte strings in a message, and the checksum at its end.

use std::fmt;

use bytes::Bytes;

/// The message is invalid: it was cut off, changed in transit, or comes from another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub(crate) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed message: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

const CHECKSUM: usize = 4;

/// Builds a message: what `write` writes, followed by its CRC-32C.
pub(crate) fn message(capacity: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity + CHECKSUM);
    write(&mut out);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// A variable-length number: those below 128 take one byte, and every further seven bits another.
pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The difference between two numbers, which is small in either direction.
pub(crate) fn put_step(out: &mut Vec<u8>, from: u64, to: u64) {
    let step = to.wrapping_sub(from) as i64;
    put_number(out, ((step << 1) ^ (step >> 63)) as u64);
}

/// Reads a message from its beginning.
pub(crate) struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    /// A reader of a whole message. Checks its checksum first.
    pub(crate) fn new(mut bytes: Bytes) -> Result<Self, Malformed> {
        let len = bytes.len().checked_sub(CHECKSUM).ok_or(Malformed("it has no checksum"))?;
        let checksum = bytes.split_off(len);
        if crc32c::crc32c(&bytes).to_le_bytes() != checksum[..] {
            return Err(Malformed("its checksum is another one"));
        }
        Ok(Reader { bytes, at: 0 })
    }

    pub(crate) fn rest(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest() == 0
    }

    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.is_at_end() { Ok(()) } else { Err(Malformed("it is longer than it should be")) }
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = *self.bytes.get(self.at).ok_or(Malformed("it ends too early"))?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.byte()?);
            let bits = byte & 0x7f;
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed("a number is too large"))
    }

    pub(crate) fn step(&mut self, from: u64) -> Result<u64, Malformed> {
        let number = self.number()?;
        let step = (number >> 1) ^ (number & 1).wrapping_neg();
        Ok(from.wrapping_add(step))
    }

    /// A count of items, at most `most`, each of which takes at least `least` bytes.
    pub(crate) fn count(&mut self, least: usize, most: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed("a number is too large"))?;
        if count > most {
            return Err(Malformed("it has too many parts"));
        }
        if count.saturating_mul(least) > self.rest() {
            return Err(Malformed("it ends too early"));
        }
        Ok(count)
    }

    /// The next bytes, without copying them.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<Bytes, Malformed> {
        if len > self.rest() {
            return Err(Malformed("it ends too early"));
        }
        let piece = self.bytes.slice(self.at..self.at + len);
        self.at += len;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<T>(bytes: Vec<u8>, read: impl FnOnce(&mut Reader) -> Result<T, Malformed>) -> Result<T, Malformed> {
        let mut reader = Reader::new(message(0, |out| *out = bytes).into())?;
        let value = read(&mut reader)?;
        reader.end().map(|()| value)
    }

    proptest! {
        #[test]
        fn numbers_come_back(number: u64, from: u64) {
            let mut out = Vec::new();
            put_number(&mut out, number);
            put_step(&mut out, from, number);
            let both = read(out, |reader| Ok((reader.number()?, reader.step(from)?)));
            prop_assert_eq!(both, Ok((number, number)));
        }
    }

    #[test]
    fn small_steps_take_a_byte() {
        for (from, to) in [(5, 5), (5, 6), (6, 5), (0, 63), (64, 0)] {
            let mut out = Vec::new();
            put_step(&mut out, from, to);
            assert_eq!(out.len(), 1, "{from} {to}");
        }
    }

    #[test]
    fn what_is_too_large_or_too_short_is_malformed() {
        for bytes in [
            vec![0xff; 10],
            vec![0x80; 10],
            vec![0x80],
            vec![],
            vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        ] {
            assert!(read(bytes.clone(), Reader::number).is_err(), "{bytes:?}");
        }
        assert!(read(vec![3, 0, 0], |reader| reader.count(1, 100)).is_err());
        assert!(read(vec![3], |reader| reader.count(0, 2)).is_err());
        assert!(read(vec![1, 2], Reader::byte).is_err(), "something is left");
    }

    #[test]
    fn a_bit_that_flips_anywhere_is_seen() {
        let sound = message(0, |out| out.extend(b"some bytes"));
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Reader::new(bytes.into()).is_err(), "{bit}");
        }
        for len in 0..sound.len() {
            assert!(Reader::new(sound[..len].to_vec().into()).is_err(), "{len}");
        }
    }
}
