//! What a response is made of: bytes we encoded and slices of log files, in the order they go out.
//!
//! A plan never holds record bytes. The encoder adds bytes and slices as it walks the response; the sender writes
//! bytes with `MSG_MORE` and slices with `sendfile`, so records go from the page cache to the socket.

use bytes::{BufMut, BytesMut};
use kafka_wire_core::{ApiVersion, EncodeError, KafkaEncode};
use kittiwake_storage::FileSlice;
use std::collections::VecDeque;

use super::frame::SIZE_LEN;

/// One stretch of a plan.
#[derive(Debug)]
pub enum Part {
    /// Encoded bytes, held in memory.
    Bytes(BytesMut),
    /// Record bytes, still in their file.
    Slice {
        /// The whole slice.
        slice: FileSlice,
        /// How much of it has been sent.
        sent: u32,
    },
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Slice { slice, sent } => (slice.length() - sent) as usize,
        }
    }
}

/// One or more whole responses, ready to be sent.
#[derive(Debug, Default)]
pub struct SendPlan {
    parts: VecDeque<Part>,
}

impl SendPlan {
    /// A response of `body` alone, framed: size, correlation id, header tags where `header_version` is 1, body.
    ///
    /// # Errors
    /// A body that cannot be represented in `version`: a bug of the handler that built it.
    pub fn response(
        correlation_id: i32,
        header_version: i16,
        body: &impl KafkaEncode,
        version: ApiVersion,
    ) -> Result<Self, EncodeError> {
        let mut bytes = BytesMut::with_capacity(64);
        bytes.put_i32(0);
        bytes.put_i32(correlation_id);
        if header_version >= 1 {
            bytes.put_u8(0);
        }
        body.encode_into(&mut bytes, version)?;
        let mut plan = Self::default();
        plan.push_bytes(bytes);
        plan.set_frame_size();
        Ok(plan)
    }

    /// Writes the sum of everything behind the size field into it; the first part must begin with that field.
    pub fn set_frame_size(&mut self) {
        let size = self.len().saturating_sub(SIZE_LEN);
        let Some(Part::Bytes(first)) = self.parts.front_mut() else {
            return;
        };
        // Fetch budgets are i32 and one frame's bytes stay below them by construction; a larger one would be a bug that
        // the client sees as a broken frame, so it is clamped rather than wrapped.
        let size = i32::try_from(size).unwrap_or(i32::MAX);
        first[..SIZE_LEN].copy_from_slice(&size.to_be_bytes());
    }

    /// Appends encoded bytes, merging them into the last part where that is bytes too.
    pub fn push_bytes(&mut self, bytes: BytesMut) {
        if bytes.is_empty() {
            return;
        }
        match self.parts.back_mut() {
            Some(Part::Bytes(last)) => last.extend_from_slice(&bytes),
            _ => self.parts.push_back(Part::Bytes(bytes)),
        }
    }

    /// Appends a slice of a log file.
    pub fn push_slice(&mut self, slice: FileSlice) {
        self.parts.push_back(Part::Slice { slice, sent: 0 });
    }

    /// Appends all of `other`.
    pub fn append(&mut self, other: Self) {
        for part in other.parts {
            match part {
                Part::Bytes(bytes) => self.push_bytes(bytes),
                slice @ Part::Slice { .. } => self.parts.push_back(slice),
            }
        }
    }

    /// Bytes still to be sent.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Whether nothing is left to be sent.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether any of it is record bytes in a file.
    pub fn has_slices(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Slice { .. }))
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut Part> {
        self.parts.front_mut()
    }

    pub(super) fn pop_front(&mut self) {
        self.parts.pop_front();
    }

    /// Whether something follows the part at the front.
    pub(super) fn more_behind_front(&self) -> bool {
        self.parts.len() > 1
    }
}

/// All bytes of a plan, as the peer receives them.
#[cfg(test)]
pub(crate) fn flatten(plan: SendPlan) -> Vec<u8> {
    plan.parts
        .into_iter()
        .flat_map(|part| match part {
            Part::Bytes(bytes) => bytes.to_vec(),
            Part::Slice { slice, .. } => slice.read().expect("the slice is in its file"),
        })
        .collect()
}
