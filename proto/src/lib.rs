//! Generated gRPC services and metadata records.
//!
//! Module paths are the protobuf packages: [`kittiwake::admin::v1`] is `kittiwake.admin.v1`. The
//! `.proto` files beside this crate's manifest are the documentation of what they hold.
//!
//! [`metadata::v1`] is what the quorum writes to its disk and is therefore read for ever: fields
//! are added, never renumbered or given another meaning, and a record whose meaning changes gets a
//! new version (see `metadata/v1/log.proto`).
#![forbid(unsafe_code)]

/// gRPC services, one module per package.
pub mod kittiwake {
    /// Administration: what operators and the command line call.
    pub mod admin {
        /// Package `kittiwake.admin.v1`.
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("kittiwake.admin.v1");
        }
    }

    /// Broker lifecycle: registration, heartbeats, fencing.
    pub mod cluster {
        /// Package `kittiwake.cluster.v1`.
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("kittiwake.cluster.v1");
        }
    }

    /// Messages between the members of the metadata quorum.
    pub mod raft {
        /// Package `kittiwake.raft.v1`.
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("kittiwake.raft.v1");
        }
    }
}

/// Records of the metadata log and its snapshots.
pub mod metadata {
    /// Package `metadata.v1`.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("metadata.v1");
    }
}

/// Encoded `FileDescriptorSet` of every package here, for the gRPC reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
