//! Group coordination: classic consumer groups and their offsets, kept in `__consumer_offsets`.

mod deadlines;
mod error;
pub mod group;
pub mod offsets_log;
mod subscription;

pub use error::GroupError;
