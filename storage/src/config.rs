//! What a topic's configuration says about its logs.

/// Settings of one log; named after Kafka's topic configs. May change while the log is open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogConfig {
    /// `segment.bytes`: a segment never grows past this. At most `i32::MAX`, because positions in
    /// an index are signed 32-bit numbers.
    pub segment_bytes: u32,
    /// `segment.ms`: a segment older than this is rolled at the next append.
    pub segment_ms: i64,
    /// `segment.index.bytes`: a segment is rolled when one of its indexes has grown to this.
    pub segment_index_bytes: u32,
    /// `index.interval.bytes`: bytes of log between two index entries.
    pub index_interval_bytes: u32,
    /// `retention.bytes`: the log is cut from the front down to this; `None` is without limit.
    pub retention_bytes: Option<u64>,
    /// `retention.ms`: segments whose newest record is older are removed; `None` is without limit.
    pub retention_ms: Option<i64>,
    /// Whether `cleanup.policy` has `delete`: otherwise retention removes nothing.
    pub delete_enabled: bool,
    /// `file.delete.delay.ms`: how long removed files stay on disk under another name.
    pub file_delete_delay_ms: u64,
    /// `producer.id.expiration.ms`: how long the state of a silent producer is kept.
    pub producer_id_expiration_ms: i64,
    /// Batches of this size and more are appended by `pwritev`, smaller ones through the map.
    pub bulk_append_bytes: u32,
}

impl LogConfig {
    /// Largest `segment.bytes`: positions must stay below `i32::MAX`.
    pub const SEGMENT_BYTES_MAX: u32 = i32::MAX as u32;

    /// Bytes a segment may hold.
    pub(crate) fn segment_limit(&self) -> u64 {
        u64::from(self.segment_bytes.min(Self::SEGMENT_BYTES_MAX))
    }
}

impl Default for LogConfig {
    /// Kafka's defaults.
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600_000,
            segment_index_bytes: 10 << 20,
            index_interval_bytes: 4096,
            retention_bytes: None,
            retention_ms: Some(7 * 24 * 3_600_000),
            delete_enabled: true,
            file_delete_delay_ms: 60_000,
            producer_id_expiration_ms: 24 * 3_600_000,
            bulk_append_bytes: 16 << 10,
        }
    }
}
