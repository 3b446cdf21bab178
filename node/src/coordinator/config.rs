//! The settings of the group coordinator, out of the broker's.

use std::time::Duration;

use super::group::GroupLimits;
use crate::config::BrokerConfig;

/// Settings of the group coordinator, by Kafka's property names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupConfig {
    /// `group.*`: limits of every group.
    pub limits: GroupLimits,
    /// `offset.metadata.max.bytes`: what a client may keep with an offset.
    pub offset_metadata_max_bytes: usize,
    /// `offsets.retention.minutes`, in milliseconds: how long offsets outlive their group (KIP-211).
    pub offsets_retention_ms: i64,
    /// `offsets.retention.check.interval.ms`
    pub offsets_retention_check_interval: Duration,
    /// `offsets.commit.timeout.ms`: how long an answer waits for its records to be replicated.
    pub offsets_commit_timeout: Duration,
}

const MINUTE_MS: i64 = 60_000;

impl GroupConfig {
    /// The coordinator's part of the broker's configuration.
    pub fn new(broker: &BrokerConfig) -> Self {
        Self {
            limits: GroupLimits {
                session_timeout_ms_min: broker.group_min_session_timeout_ms,
                session_timeout_ms_max: broker.group_max_session_timeout_ms,
                initial_rebalance_delay_ms: broker.group_initial_rebalance_delay_ms,
                members_max: broker.group_max_size,
            },
            offset_metadata_max_bytes: broker.offset_metadata_max_bytes,
            offsets_retention_ms: i64::from(broker.offsets_retention_minutes) * MINUTE_MS,
            offsets_retention_check_interval: broker.offsets_retention_check_interval_ms,
            offsets_commit_timeout: broker.offsets_commit_timeout_ms,
        }
    }
}

#[cfg(test)]
impl Default for GroupConfig {
    /// Kafka's defaults.
    fn default() -> Self {
        Self {
            limits: GroupLimits {
                session_timeout_ms_min: 6_000,
                session_timeout_ms_max: 1_800_000,
                initial_rebalance_delay_ms: 3_000,
                members_max: i32::MAX as usize,
            },
            offset_metadata_max_bytes: 4_096,
            offsets_retention_ms: 7 * 24 * 60 * MINUTE_MS,
            offsets_retention_check_interval: Duration::from_secs(600),
            offsets_commit_timeout: Duration::from_secs(5),
        }
    }
}
