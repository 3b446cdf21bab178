//! Generated gRPC services and metadata records.
#![forbid(unsafe_code)]
