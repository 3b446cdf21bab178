//! The codecs of a batch's records, each bounded in what it may expand to.
//!
//! Snappy comes in two shapes: the xerial framing of Java's snappy-java (16 bytes of magic and versions, then blocks
//! with an i32 length each) and one bare snappy block, as librdkafka writes it. A reader accepts both, as snappy-java
//! does.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use thiserror::Error;

const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_LEN: usize = XERIAL_MAGIC.len() + 4 + 4;
/// Plain bytes in one xerial block; snappy-java's default.
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;
/// Decompression starts with this much and grows with what really comes out, never with what is claimed.
const FIRST_ALLOCATION_BYTES: usize = 16 * 1024;

/// Codec of the records of a batch (`compression.type`).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Compression {
    /// Records as they are.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy, xerial-framed or bare.
    Snappy,
    /// LZ4 frame.
    Lz4,
    /// Zstandard (KIP-110).
    Zstd,
}

/// Compressed records that do not decompress.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum CodecError {
    /// More came out than the reader is willing to hold.
    #[error("{codec} records expand to more than {limit} bytes")]
    TooLarge {
        /// Codec of the batch.
        codec: Compression,
        /// The reader's limit.
        limit: usize,
    },
    /// The codec says the bytes are not its own.
    #[error("{codec} records do not decompress: {detail}")]
    Malformed {
        /// Codec of the batch.
        codec: Compression,
        /// What the codec said.
        detail: String,
    },
}

impl Compression {
    /// Every codec, in the order of its number on the wire.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// Number of the codec in the attributes word.
    #[must_use]
    pub fn id(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The codec with this number, if there is one.
    #[must_use]
    pub fn from_id(id: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.id() == id)
    }

    /// Kafka's name of the codec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Expands compressed records, to `limit` bytes at most.
    ///
    /// Memory grows with the bytes that really come out, whatever sizes the input claims.
    pub fn decompress(self, compressed: &[u8], limit: usize) -> Result<Vec<u8>, CodecError> {
        match self {
            Self::None if compressed.len() > limit => {
                Err(CodecError::TooLarge { codec: self, limit })
            }
            Self::None => Ok(compressed.to_vec()),
            Self::Gzip => self.read_all(flate2::read::MultiGzDecoder::new(compressed), limit),
            Self::Snappy => unsnappy(compressed, limit),
            Self::Lz4 => self.read_all(lz4_flex::frame::FrameDecoder::new(compressed), limit),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)
                    .map_err(|error| self.malformed(&error))?;
                // The window is memory too, and the frame's header chooses it.
                decoder
                    .window_log_max(zstd_window_log_max(limit))
                    .map_err(|error| self.malformed(&error))?;
                self.read_all(decoder, limit)
            }
        }
    }

    /// Compresses records with the codec's default level.
    pub fn compress(self, plain: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(plain.to_vec()),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain)?;
                encoder.finish()
            }
            Self::Snappy => snappy(plain),
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(plain)?;
                Ok(encoder.finish()?)
            }
            Self::Zstd => zstd::stream::encode_all(plain, zstd::DEFAULT_COMPRESSION_LEVEL),
        }
    }

    fn read_all(self, reader: impl Read, limit: usize) -> Result<Vec<u8>, CodecError> {
        let mut plain = Vec::with_capacity(limit.min(FIRST_ALLOCATION_BYTES));
        // One byte more than allowed tells "exactly the limit" from "more".
        reader
            .take((limit as u64).saturating_add(1))
            .read_to_end(&mut plain)
            .map_err(|error| self.malformed(&error))?;
        if plain.len() > limit {
            return Err(CodecError::TooLarge { codec: self, limit });
        }
        Ok(plain)
    }

    fn malformed(self, detail: &dyn fmt::Display) -> CodecError {
        CodecError::Malformed {
            codec: self,
            detail: detail.to_string(),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|codec| codec.name() == name)
            .ok_or_else(|| format!("unknown codec {name:?}: none, gzip, snappy, lz4 or zstd"))
    }
}

/// The largest window a frame may ask for, as a power of two: enough for `limit` bytes, within bounds.
fn zstd_window_log_max(limit: usize) -> u32 {
    const SMALLEST: u32 = 23; // 8 MiB: what RFC 8878 asks of every decoder; encoders ask for more than they fill
    const LARGEST: u32 = 27; // 128 MiB: zstd's own default
    limit
        .checked_next_power_of_two()
        .map_or(LARGEST, usize::ilog2)
        .clamp(SMALLEST, LARGEST)
}

fn snappy(plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut framed = XERIAL_MAGIC.to_vec();
    framed.extend_from_slice(&1_i32.to_be_bytes()); // version
    framed.extend_from_slice(&1_i32.to_be_bytes()); // oldest version that can read it
    let mut encoder = snap::raw::Encoder::new();
    for block in plain.chunks(XERIAL_BLOCK_BYTES) {
        let compressed = encoder.compress_vec(block)?;
        // At most 32 KiB and a little: fits an i32.
        framed.extend_from_slice(&(compressed.len() as i32).to_be_bytes());
        framed.extend_from_slice(&compressed);
    }
    Ok(framed)
}

fn unsnappy(compressed: &[u8], limit: usize) -> Result<Vec<u8>, CodecError> {
    let mut plain = Vec::new();
    if !compressed.starts_with(&XERIAL_MAGIC) {
        unsnappy_block(compressed, &mut plain, limit)?;
        return Ok(plain);
    }
    let malformed = |detail: &str| Compression::Snappy.malformed(&detail);
    let mut rest = compressed
        .get(XERIAL_HEADER_LEN..)
        .ok_or_else(|| malformed("cut inside the xerial header"))?;
    while !rest.is_empty() {
        // snappy-java concatenates streams, so a header may come again between blocks.
        if rest.starts_with(&XERIAL_MAGIC) {
            rest = rest
                .get(XERIAL_HEADER_LEN..)
                .ok_or_else(|| malformed("cut inside a xerial header"))?;
            continue;
        }
        let (length, after) = rest
            .split_first_chunk::<4>()
            .ok_or_else(|| malformed("cut inside a block length"))?;
        let length = usize::try_from(i32::from_be_bytes(*length))
            .map_err(|_| malformed("negative block length"))?;
        let block = after
            .get(..length)
            .ok_or_else(|| malformed("a block reaches past the end"))?;
        unsnappy_block(block, &mut plain, limit)?;
        rest = &after[length..];
    }
    Ok(plain)
}

fn unsnappy_block(block: &[u8], plain: &mut Vec<u8>, limit: usize) -> Result<(), CodecError> {
    let codec = Compression::Snappy;
    let claimed = snap::raw::decompress_len(block).map_err(|error| codec.malformed(&error))?;
    if claimed > limit - plain.len() {
        return Err(CodecError::TooLarge { codec, limit });
    }
    // Snappy's densest element makes 64 bytes of 3. A block that claims more lies, and must not size an allocation.
    if claimed / 64 > block.len() {
        return Err(codec.malformed(&"claims more bytes than its input can make"));
    }
    let start = plain.len();
    plain.resize(start + claimed, 0);
    snap::raw::Decoder::new()
        .decompress(block, &mut plain[start..])
        .map_err(|error| codec.malformed(&error))?;
    Ok(())
}
