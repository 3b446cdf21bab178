//! One partition's log on disk.
#![deny(unsafe_code)]

mod ids;

pub use ids::{LeaderEpoch, Offset};
