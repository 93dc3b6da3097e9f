//! Numbers, ids and strings ↔ bytes (docs/format.md, "Numbers and strings"). Pure.
//!
//! Invariants: each value has exactly one encoding, and `Decoder` refuses every other; an id that it returns is within
//! the bounds of its type, so that nobody after it has to ask. Numbers are LEB128, signed ones zigzag; strings are a
//! length and the bytes.

use super::Timespec;
use crate::ids::{ArcSerial, BlockId, Dirno, FrameNo, Logid, Version};

/// Bytes that are no record; says which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRecord(pub &'static str);

pub type Decoded<T> = Result<T, BadRecord>;

/// `Err` unless the rule holds.
pub fn require(holds: bool, rule: BadRecord) -> Decoded<()> {
    if holds { Ok(()) } else { Err(rule) }
}

/// Appends numbers and strings to a buffer.
#[derive(Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    pub fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    pub fn int(&mut self, value: i64) {
        self.uint(((value << 1) ^ (value >> 63)) as u64);
    }
    pub fn bytes(&mut self, value: &[u8]) {
        self.uint(value.len() as u64);
        self.raw(value);
    }
    pub fn raw(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }
    pub fn time(&mut self, time: Timespec) {
        self.int(time.sec);
        self.uint(u64::from(time.nsec));
    }
}

/// Reads what `Encoder` wrote.
pub struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder(bytes)
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn u8(&mut self) -> Decoded<u8> {
        let (first, rest) = self.0.split_first().ok_or(BadRecord("cut short"))?;
        self.0 = rest;
        Ok(*first)
    }
    pub fn uint(&mut self) -> Decoded<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                require(byte != 0 || shift == 0, BadRecord("number longer than it need be"))?;
                return Ok(value);
            }
        }
        Err(BadRecord("number of more than 64 bits"))
    }
    /// A number that must fit the smaller type.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Decoded<T> {
        T::try_from(self.uint()?).map_err(|_| BadRecord("number out of range"))
    }
    pub fn int(&mut self) -> Decoded<i64> {
        let raw = self.uint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }
    /// A byte that is 0 or 1.
    pub fn flag(&mut self) -> Decoded<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadRecord("flag is neither 0 nor 1")),
        }
    }
    pub fn raw(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(BadRecord("cut short"))?;
        self.0 = rest;
        Ok(bytes)
    }
    pub fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(BadRecord("cut short"))?;
        self.0 = rest;
        Ok(*bytes)
    }
    pub fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let len = self.small()?;
        self.raw(len)
    }
    pub fn string(&mut self) -> Decoded<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| BadRecord("text is not UTF-8"))
    }
    pub fn time(&mut self) -> Decoded<Timespec> {
        let time = Timespec { sec: self.int()?, nsec: self.small()? };
        require(time.nsec < 1_000_000_000, BadRecord("nanoseconds out of range"))?;
        Ok(time)
    }
    /// A count of things that take at least one byte each, so it can't make a reader allocate more than it was given.
    pub fn count(&mut self) -> Decoded<usize> {
        let count = self.small()?;
        require(count <= self.0.len(), BadRecord("count too large"))?;
        Ok(count)
    }
    /// What is not decoded yet.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
    pub fn end(self) -> Decoded<()> {
        require(self.0.is_empty(), BadRecord("bytes left over"))
    }

    /// A number from `low` to `high`.
    pub fn within(&mut self, low: u64, high: u64, rule: BadRecord) -> Decoded<u64> {
        let value = self.uint()?;
        require((low..=high).contains(&value), rule)?;
        Ok(value)
    }
    pub fn version(&mut self) -> Decoded<Version> {
        let version = self.within(0, u64::from(Version::MAX.0), BadRecord("version out of range"))?;
        Ok(Version(version as u32))
    }
    pub fn serial(&mut self) -> Decoded<ArcSerial> {
        self.within(0, ArcSerial::MAX.0, BadRecord("arc serial out of range")).map(ArcSerial)
    }
    pub fn frame_no(&mut self) -> Decoded<FrameNo> {
        let no = self.within(0, u64::from(FrameNo::MAX.0), BadRecord("frame number out of range"))?;
        Ok(FrameNo(no as u32))
    }
    pub fn block(&mut self) -> Decoded<BlockId> {
        self.within(0, BlockId::MAX.0, BadRecord("block id out of range")).map(BlockId)
    }
    pub fn logid(&mut self) -> Decoded<Logid> {
        self.within(Logid::FIRST.0, Logid::MAX.0, BadRecord("logid out of range")).map(Logid)
    }
    pub fn dirno(&mut self) -> Decoded<Dirno> {
        self.within(0, Dirno::MAX.0, BadRecord("directory number out of range")).map(Dirno)
    }
}
