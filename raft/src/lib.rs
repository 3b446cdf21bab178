//! The metadata quorum.
#![forbid(unsafe_code)]
