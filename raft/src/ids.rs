//! The names and numbers of cluster metadata, each in a type of its own so that none is passed for
//! another.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A broker, as operators number them; never negative.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BrokerId(pub i32);

/// One registration of a broker: the metadata offset at which it was accepted (KIP-500). Grows at
/// every registration, so that a request of an earlier life is recognised.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BrokerEpoch(pub i64);

/// Version of a partition's state: +1 at every change, whatever changed; what ISR changes are
/// compared and set by (KIP-497).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PartitionEpoch(pub i32);

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_number!(BrokerId, BrokerEpoch, PartitionEpoch);

/// The text was not a UUID in Kafka's form: 22 characters of base64url without padding, not zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a UUID in base64url without padding (22 characters, not all zero)")]
pub struct ParseIdError;

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Never zero (Kafka's wire form of "none"). Displayed and parsed as Kafka does: base64url
        /// without padding.
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name([u8; 16]);

        impl $name {
            /// A fresh random id, one whose text does not look like a command line option.
            #[must_use]
            pub fn random() -> Self {
                loop {
                    let bytes = Uuid::new_v4().into_bytes();
                    // 0b111110 is '-' in base64url.
                    if bytes[0] >> 2 != 0b11_1110 {
                        return Self(bytes);
                    }
                }
            }

            /// The id with these bytes; `None` if they are all zero.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
                if u128::from_be_bytes(bytes) == 0 { None } else { Some(Self(bytes)) }
            }

            /// The 16 bytes, in the order of the wire.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// The 16 bytes, in the order of the wire.
            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(encode_base64url(&self.0, &mut [0; UUID_TEXT_LEN]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                decode_base64url(text).and_then(Self::from_bytes).ok_or(ParseIdError)
            }
        }
    };
}

uuid_type!(
    /// A topic; a topic deleted and created again under its old name gets a new one (KIP-516).
    TopicId
);
uuid_type!(
    /// A data directory (KIP-858). Raft identities are directory ids, not broker ids: a broker that
    /// comes back with an empty disk has forgotten its votes and must be a new member (KIP-853).
    DirectoryId
);
uuid_type!(
    /// One life of a broker process, chosen at its start.
    IncarnationId
);

/// Characters of 16 bytes in base64url without padding.
const UUID_TEXT_LEN: usize = 22;

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn encode_base64url<'a>(bytes: &[u8; 16], text: &'a mut [u8; UUID_TEXT_LEN]) -> &'a str {
    let number = u128::from_be_bytes(*bytes);
    for (position, character) in text.iter_mut().enumerate() {
        // 21 characters of 6 bits, then one of the last 2 bits with 4 zero bits after them.
        let sextet = match position {
            21 => number << 4,
            _ => number >> (122 - 6 * position),
        };
        *character = BASE64URL[(sextet & 0x3f) as usize];
    }
    std::str::from_utf8(text).unwrap_or_default()
}

fn decode_base64url(text: &str) -> Option<[u8; 16]> {
    if text.len() != UUID_TEXT_LEN {
        return None;
    }
    let mut number = 0u128;
    for (position, character) in text.bytes().enumerate() {
        let sextet = BASE64URL.iter().position(|known| *known == character)? as u128;
        number = match position {
            // Bits past the 128th must be zero, or two texts would name one id.
            21 if sextet & 0xf != 0 => return None,
            21 => number << 2 | sextet >> 4,
            _ => number << 6 | sextet,
        };
    }
    Some(number.to_be_bytes())
}

/// openraft's test suite numbers its nodes.
#[cfg(test)]
impl From<u64> for DirectoryId {
    fn from(number: u64) -> Self {
        Self((1u128 << 127 | u128::from(number)).to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_kafka_prints_them() {
        // org.apache.kafka.common.Uuid: new Uuid(0, 1) prints as this.
        let mut one = [0; 16];
        one[15] = 1;
        let id = TopicId::from_bytes(one).unwrap();
        assert_eq!(id.to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!("AAAAAAAAAAAAAAAAAAAAAQ".parse(), Ok(id));
        assert_eq!(
            TopicId::from_bytes([0xff; 16]).unwrap().to_string(),
            "_____________________w"
        );
    }

    #[test]
    fn ids_survive_their_text() {
        for _ in 0..1000 {
            let id = TopicId::random();
            assert_eq!(id.to_string().parse(), Ok(id));
            assert!(!id.to_string().starts_with('-'));
        }
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in [
            "",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAR",
            "AAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAA+Q",
            "äAAAAAAAAAAAAAAAAAAAAQ",
        ] {
            assert_eq!(text.parse::<TopicId>(), Err(ParseIdError), "{text}");
        }
        assert_eq!(TopicId::from_bytes([0; 16]), None);
    }
}
