//! The outside of a zstd frame (RFC 8878): what `Packer` makes is exactly one, and a reader takes nothing else. No I/O.
//!
//! Invariants: bytes that a decompressor would skip (skippable frames, frames after the first, what is left over), or
//! that would make it keep more than the plain bytes (a window larger than them), are refused before it sees them.

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Bits of the descriptor: one for "no window but the content", two for the length of the size, the others not used here
/// (a checksum, a dictionary, reserved).
const SINGLE_SEGMENT: u8 = 1 << 5;
const SIZE_CODE_SHIFT: u32 = 6;
const NOT_USED: u8 = 0b0001_1111;

/// Is this one zstd frame from its first to its last byte, with the content size `plain_len` in its header?
pub fn is_one_frame(stored: &[u8], plain_len: u32) -> bool {
    walk(stored, u64::from(plain_len)).is_some_and(<[u8]>::is_empty)
}

/// What follows the frame.
fn walk(stored: &[u8], plain_len: u64) -> Option<&[u8]> {
    let (descriptor, mut rest) = stored.strip_prefix(&MAGIC)?.split_first()?;
    if descriptor & NOT_USED != 0 {
        return None;
    }
    if descriptor & SINGLE_SEGMENT == 0 {
        let (window, after) = rest.split_first()?;
        rest = after;
        let base = 1u64 << (10 + u32::from(window >> 3));
        // One that held all of the content would not have been written.
        if base + base / 8 * u64::from(window & 7) >= plain_len {
            return None;
        }
    }
    let mut rest = rest.strip_prefix(size_field(*descriptor, plain_len)?.as_slice())?;
    loop {
        let ([a, b, c], body) = rest.split_first_chunk()?;
        let head = u32::from_le_bytes([*a, *b, *c, 0]);
        let len = match head >> 1 & 3 {
            0 | 2 => head >> 3,
            1 => 1,
            _ => return None,
        };
        rest = body.get(len as usize..)?;
        if head & 1 == 1 {
            return Some(rest);
        }
    }
}

/// The content size as it stands in the header: in the shortest form.
fn size_field(descriptor: u8, plain_len: u64) -> Option<Vec<u8>> {
    let (code, value, len) = match plain_len {
        0..256 => (0, plain_len, 1),
        256..65_792 => (1, plain_len - 256, 2),
        _ => (2, plain_len, 4),
    };
    let written = descriptor >> SIZE_CODE_SHIFT == code && (code > 0 || descriptor & SINGLE_SEGMENT != 0);
    written.then(|| value.to_le_bytes().get(..len).unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arc::{Codec, Packer};
    use std::io::Write;

    fn text(len: usize) -> Vec<u8> {
        b"all work and no play makes a dull tree ".iter().copied().cycle().take(len).collect()
    }

    #[test]
    fn all_that_the_packer_makes_is_one_frame() {
        for level in [1, 3, 9, 19] {
            let mut packer = Packer::new(level).unwrap();
            for len in [32, 100, 255, 256, 257, 1 << 10, 65_535, 65_536, 65_791, 65_792, 200_000, 3 << 20, 9 << 20] {
                if level > 3 && len > 1 << 20 {
                    continue;
                }
                for plain in [text(len), vec![0; len]] {
                    let packed = packer.pack(&plain).unwrap();
                    let right = packed.codec == Codec::Plain || is_one_frame(&packed.stored, len as u32);
                    assert!(right, "level {level}, {len} bytes");
                    assert!(packed.codec == Codec::Zstd || len <= 100, "level {level}, {len} bytes");
                }
            }
        }
    }

    #[test]
    fn anything_beside_one_frame_is_refused() {
        let plain = text(3000);
        let one = zstd::bulk::compress(&plain, 3).unwrap();
        assert!(is_one_frame(&one, 3000));
        let skippable = [&0x184d_2a50u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
        let empty = zstd::bulk::compress(b"", 3).unwrap();
        let half = |range: std::ops::Range<usize>| zstd::bulk::compress(&plain[range], 3).unwrap();
        let streamed = |size: Option<u64>, checksum: bool, window_log: Option<u32>| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.set_pledged_src_size(size).unwrap();
            encoder.include_checksum(checksum).unwrap();
            if let Some(log) = window_log {
                encoder.window_log(log).unwrap();
            }
            encoder.write_all(&plain).unwrap();
            encoder.finish().unwrap()
        };
        // A window of 1 MiB for 3000 bytes: what stands behind the descriptor says so.
        let mut window = one.clone();
        window[4] &= !SINGLE_SEGMENT;
        window.insert(5, 10 << 3);
        let mut long_size = one.clone();
        long_size.splice(4..7, [2 << SIZE_CODE_SHIFT | SINGLE_SEGMENT, 0xb8, 0x0b, 0, 0]);
        for (what, bytes) in [
            ("two frames", [half(0..1500), half(1500..3000)].concat()),
            ("an empty frame before", [empty.clone(), one.clone()].concat()),
            ("an empty frame after", [one.clone(), empty].concat()),
            ("a skippable frame before", [skippable.clone(), one.clone()].concat()),
            ("a skippable frame after", [one.clone(), skippable].concat()),
            ("no content size", streamed(None, false, None)),
            ("a checksum", streamed(Some(3000), true, None)),
            ("a window", window),
            ("a content size of four bytes", long_size),
        ] {
            let mut out = Vec::with_capacity(4096);
            let decompressed = zstd::bulk::Decompressor::new().unwrap().decompress_to_buffer(&bytes, &mut out);
            assert!(decompressed.is_ok() && out == plain, "{what}: a plain decompressor takes it");
            assert!(!is_one_frame(&bytes, 3000), "{what}");
        }
        assert!(is_one_frame(&streamed(Some(3000), false, Some(20)), 3000), "fits its content all the same");
        assert!(!is_one_frame(&[&one[..], b"\0"].concat(), 3000), "a byte left over");
        assert!(!is_one_frame(&one, 2999) && !is_one_frame(b"", 0));
        assert!((0..one.len()).all(|len| !is_one_frame(&one[..len], 3000)), "cut");
    }
}
