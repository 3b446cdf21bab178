//! Replication by pull: followers fetch from leaders over the fetch channel.
//!
//! ```text
//! partition::manager ─follow─▶ Fetchers ─▶ Fetcher, one per leader ─▶ channel ═Fetch═▶ leader's replication listener
//!                                             └▶ Partition::follow_answer ─▶ log         └▶ sessions ─▶ slices, sendfile
//! ```
//!
//! One connection per pair of nodes carries all partitions that one follows of the other. A follower stores the leader's
//! bytes as they are.

mod channel;
mod fetcher;
mod pool;
pub mod sessions;
pub mod throttle;

pub use pool::{FetchCounters, FetcherPool};
