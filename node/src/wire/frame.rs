//! Kafka's framing: where one request ends and the next begins, and who it is for.
//!
//! ```text
//! request  := size:i32  api_key:i16  api_version:i16  correlation_id:i32  client_id:nullable_string  [tagged fields]  body
//! response := size:i32  correlation_id:i32  [tagged fields]  body
//! ```
//!
//! `size` counts what follows it. Request headers are v1, or v2 (with tagged fields) where the API version is flexible;
//! in both, `client_id` has a 16-bit length (KIP-482). The size is the first number a stranger sends us: it is checked
//! before anything is sized by it.

use bytes::{Buf, Bytes, BytesMut};
use kafka_wire_core::{DecodeError, DecodeLimits, Decoder, StrBytes};
use thiserror::Error;

/// Bytes of the size field in front of every frame.
pub const SIZE_LEN: usize = 4;

/// Bytes of the shortest request: key, version, correlation id and a null client id.
const REQUEST_MIN_LEN: usize = 2 + 2 + 4 + 2;

/// Why a connection's bytes are not Kafka requests; each closes the connection.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The size field is negative or too small to hold a request header.
    #[error("a frame claims {0} bytes, less than a request header")]
    TooSmall(i32),
    /// The size field exceeds `socket.request.max.bytes`.
    #[error("a frame claims {claimed} bytes, over the limit of {limit}")]
    TooLarge {
        /// What the size field says.
        claimed: i32,
        /// The limit in force.
        limit: usize,
    },
    /// The request header cannot be decoded.
    #[error("request header: {0}")]
    Header(#[from] DecodeError),
}

/// Size of the frame at the front of `buffer` without its size field; `None` while the field is incomplete.
///
/// # Errors
/// A size no request can have, or above `limit`.
pub fn peek_size(buffer: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
    let Some(field) = buffer.first_chunk::<SIZE_LEN>() else {
        return Ok(None);
    };
    let claimed = i32::from_be_bytes(*field);
    match usize::try_from(claimed) {
        Ok(size) if size > limit => Err(FrameError::TooLarge { claimed, limit }),
        Ok(size) if size >= REQUEST_MIN_LEN => Ok(Some(size)),
        _ => Err(FrameError::TooSmall(claimed)),
    }
}

/// Takes the frame of `size` bytes from the front of `buffer`, which must hold it and its size field.
pub fn take(buffer: &mut BytesMut, size: usize) -> Bytes {
    buffer.advance(SIZE_LEN);
    buffer.split_to(size).freeze()
}

/// The part of a request that every API shares.
#[derive(Clone, Debug)]
pub struct RequestHeader {
    /// Which API the request is for.
    pub api_key: i16,
    /// In which version of it the body is encoded.
    pub api_version: i16,
    /// Comes back in the response.
    pub correlation_id: i32,
    /// The client's name for itself; free text.
    pub client_id: Option<StrBytes>,
}

/// Limits for a request header: a client id and a few tags, whatever the frame's size.
pub fn header_limits(frame_bytes_max: usize) -> DecodeLimits {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = frame_bytes_max;
    limits.max_bytes_bytes = frame_bytes_max;
    limits.max_string_bytes = i16::MAX as usize;
    limits.max_tagged_fields = 16;
    limits.max_tag_bytes = 4096;
    limits.max_total_tag_bytes = 4096;
    limits
}

/// Splits a frame into its header and its body, which shares the frame's memory.
///
/// `flexible` says whether a version of an API has tagged fields; it is asked once, with the header's key and version.
///
/// # Errors
/// A header cut short, or with fields over `limits`.
pub fn split_request(
    frame: Bytes,
    limits: DecodeLimits,
    flexible: impl FnOnce(i16, i16) -> bool,
) -> Result<(RequestHeader, Bytes), FrameError> {
    let mut decoder = Decoder::new(frame, limits)?;
    let api_key = decoder.read_i16()?;
    let api_version = decoder.read_i16()?;
    let correlation_id = decoder.read_i32()?;
    let client_id = decoder.read_nullable_string()?;
    if flexible(api_key, api_version) {
        decoder.read_tagged_fields()?;
    }
    let body = decoder.take_bytes(decoder.remaining())?;
    Ok((
        RequestHeader {
            api_key,
            api_version,
            correlation_id,
            client_id,
        },
        body,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn a_size_that_lies_is_refused_before_it_sizes_anything() {
        for claimed in [i32::MIN, -1, 0, 9] {
            assert!(matches!(
                peek_size(&claimed.to_be_bytes(), LIMIT),
                Err(FrameError::TooSmall(found)) if found == claimed
            ));
        }
        for claimed in [LIMIT as i32 + 1, i32::MAX] {
            assert!(matches!(
                peek_size(&claimed.to_be_bytes(), LIMIT),
                Err(FrameError::TooLarge { .. })
            ));
        }
        assert_eq!(peek_size(&[0, 0, 1], LIMIT).unwrap(), None);
        assert_eq!(
            peek_size(&(LIMIT as i32).to_be_bytes(), LIMIT).unwrap(),
            Some(LIMIT)
        );
    }

    #[test]
    fn a_header_cut_at_any_byte_is_an_error() {
        let mut whole = Vec::new();
        whole.extend_from_slice(&3i16.to_be_bytes());
        whole.extend_from_slice(&12i16.to_be_bytes());
        whole.extend_from_slice(&7i32.to_be_bytes());
        whole.extend_from_slice(&4i16.to_be_bytes());
        whole.extend_from_slice(b"test");
        whole.push(0);
        for cut in 0..whole.len() {
            let frame = Bytes::copy_from_slice(&whole[..cut]);
            assert!(
                split_request(frame, DecodeLimits::default(), |_, _| true).is_err(),
                "cut at {cut}"
            );
        }
        let (header, body) = split_request(
            Bytes::from(whole),
            DecodeLimits::default(),
            |key, version| (key, version) == (3, 12),
        )
        .unwrap();
        assert_eq!(header.correlation_id, 7);
        assert_eq!(header.client_id.as_deref(), Some("test"));
        assert!(body.is_empty());
    }

    #[test]
    fn taking_a_frame_leaves_the_next() {
        let mut buffer = BytesMut::new();
        buffer.extend_from_slice(&10i32.to_be_bytes());
        buffer.extend_from_slice(&[1; 10]);
        buffer.extend_from_slice(&[9, 9]);
        let size = peek_size(&buffer, LIMIT).unwrap().unwrap();
        assert_eq!(&take(&mut buffer, size)[..], &[1; 10]);
        assert_eq!(&buffer[..], &[9, 9]);
    }
}
