//! Snapshots: the image at one offset, in one piece.
//!
//! A snapshot of 10,000 partitions is under a megabyte, so it is kept, stored and sent whole: an
//! encoded `metadata.v1.Snapshot`.

use kittiwake_proto::metadata::v1 as pb;
use prost::Message;
use prost::bytes::Bytes;

use crate::codec::{
    CodecError, decode_image, decode_log_id, decode_stored_membership, encode_image, encode_log_id,
    encode_stored_membership,
};
use crate::image::ClusterImage;
use crate::types::{LogId, SnapshotMeta, StoredMembership};

/// The state of the state machine at one entry.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) image: ClusterImage,
}

impl Snapshot {
    pub(crate) fn encode(&self) -> Bytes {
        pb::Snapshot {
            last: self.last.as_ref().map(encode_log_id),
            membership: Some(encode_stored_membership(&self.membership)),
            image: Some(encode_image(&self.image)),
        }
        .encode_to_vec()
        .into()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let record = pb::Snapshot::decode(bytes)?;
        let last = record.last.as_ref().map(decode_log_id);
        let membership = record
            .membership
            .as_ref()
            .ok_or(CodecError::Field("membership"))?;
        let image = record.image.ok_or(CodecError::Field("image"))?;
        Ok(Self {
            last,
            membership: decode_stored_membership(membership)?,
            image: decode_image(image, last.map_or(0, |id| id.index))?,
        })
    }

    pub(crate) fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
        }
    }
}
