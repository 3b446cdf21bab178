//! `partition.metadata`: which topic a partition directory belongs to.
//!
//! ```text
//! version: 0
//! topic_id: 2iGKCR4zQEi7uCUwj2sR1w     16 bytes as URL-safe base64 without padding
//! ```
//!
//! A directory is matched to a topic by this id and never by its name: a topic that was deleted
//! and created again has the same name and another id.

use std::fs;
use std::io;
use std::path::Path;

use uuid::Uuid;

use crate::checkpoint;

/// Name of the file.
pub(crate) const FILE_NAME: &str = "partition.metadata";

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// 16 bytes in base64.
const ID_LEN: usize = 22;

/// Writes the topic id durably, the directory entry included.
///
/// # Errors
/// As [`checkpoint::replace`].
pub(crate) fn write(directory: &Path, topic_id: Uuid) -> io::Result<()> {
    let text = format!("version: 0\ntopic_id: {}\n", encode_id(topic_id));
    checkpoint::replace(&directory.join(FILE_NAME), text.as_bytes())
}

/// Reads the topic id; `None` where there is no such file.
///
/// # Errors
/// `InvalidData`; read(2).
pub(crate) fn read(directory: &Path) -> io::Result<Option<Uuid>> {
    let path = directory.join(FILE_NAME);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let invalid = |what: String| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {what}", path.display()),
        )
    };
    match field("version") {
        Some("0") => {}
        version => return Err(invalid(format!("unknown version {version:?}"))),
    }
    let id = field("topic_id").and_then(decode_id);
    id.map(Some)
        .ok_or_else(|| invalid("no valid topic_id".into()))
}

/// An id as Kafka prints it.
#[must_use]
pub fn encode_id(id: Uuid) -> String {
    let bits = id.as_u128();
    // 128 bits in 22 digits of 6: the last digit has 2 bits of the id and 4 zeros.
    (0..ID_LEN)
        .map(|digit| {
            let shift = 122 - 6 * digit as i32;
            let value = if shift >= 0 {
                bits >> shift
            } else {
                bits << -shift
            };
            char::from(ALPHABET[(value & 0x3f) as usize])
        })
        .collect()
}

/// An id from the form Kafka prints it in; `None` when it is not one.
#[must_use]
pub fn decode_id(text: &str) -> Option<Uuid> {
    if text.len() != ID_LEN {
        return None;
    }
    let mut bits = 0_u128;
    for (digit, letter) in text.bytes().enumerate() {
        let value = ALPHABET.iter().position(|known| *known == letter)? as u128;
        let shift = 122 - 6 * digit as i32;
        bits |= if shift >= 0 {
            value << shift
        } else if value.trailing_zeros() >= shift.unsigned_abs() {
            value >> -shift
        } else {
            return None;
        };
    }
    Some(Uuid::from_u128(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_kafka_does() {
        // Uuid.METADATA_TOPIC_ID of Apache Kafka.
        assert_eq!(encode_id(Uuid::from_u128(1)), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!(
            encode_id(Uuid::from_u128(u128::MAX)),
            "_____________________w"
        );
        for seed in 1..200_u128 {
            let id = Uuid::from_u128(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            assert_eq!(decode_id(&encode_id(id)), Some(id));
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "AAAA",
            "AAAAAAAAAAAAAAAAAAAAA+",
            "AAAAAAAAAAAAAAAAAAAAAB",
            "ÄAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(decode_id(text), None, "{text}");
        }
    }

    #[test]
    fn a_directory_remembers_its_topic() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let id = Uuid::from_u128(7 << 64);
        write(dir.path(), id).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(id));
        fs::write(dir.path().join(FILE_NAME), "version: 1\ntopic_id: x\n").unwrap();
        assert_eq!(
            read(dir.path()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
