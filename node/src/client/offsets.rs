//! Where to start reading, and the offsets a cluster answers for it (ListOffsets).

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use kafka_wire::ListOffsetsRequest;
use kafka_wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_wire_core::StrBytes;

use super::{Client, ClientError, Topic};
use crate::api::error::ErrorCode;

/// ListOffsets' timestamp for the log end (or the last stable offset).
const LATEST: i64 = -1;
/// ListOffsets' timestamp for the log start.
const EARLIEST: i64 = -2;
/// What a broker answers when no record is as young as the timestamp.
const NO_OFFSET: i64 = -1;

/// Where reading starts, in every partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StartOffset {
    /// The oldest record there is.
    Beginning,
    /// The next record to be written.
    End,
    /// This offset.
    At(i64),
    /// So many offsets before the end.
    Last(i64),
    /// The first record at or after this time, in milliseconds since 1970; the end where there is none.
    Time(i64),
}

impl FromStr for StartOffset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse::<i64>().ok().filter(|number| *number >= 0);
        let parsed = match text {
            "beginning" => Some(Self::Beginning),
            "end" => Some(Self::End),
            _ => match text.split_at_checked(1) {
                Some(("-", back)) => number(back).map(Self::Last),
                Some(("@", time)) => number(time).map(Self::Time),
                _ => number(text).map(Self::At),
            },
        };
        parsed.ok_or_else(|| {
            "expected beginning, end, OFFSET, -COUNT (before the end) or @MILLISECONDS".to_owned()
        })
    }
}

impl Client {
    /// The offset at which each of `partitions` starts.
    ///
    /// # Errors
    /// A leader that cannot be asked, or its refusal.
    pub async fn start_offsets(
        &mut self,
        topic: &Topic,
        partitions: &[i32],
        start: StartOffset,
    ) -> Result<BTreeMap<i32, i64>, ClientError> {
        match start {
            StartOffset::At(offset) => Ok(partitions
                .iter()
                .map(|&partition| (partition, offset))
                .collect()),
            StartOffset::Beginning => self.list_offsets(topic, partitions, EARLIEST).await,
            StartOffset::End => self.end_offsets(topic, partitions).await,
            StartOffset::Last(count) => {
                let earliest = self.list_offsets(topic, partitions, EARLIEST).await?;
                let mut offsets = self.end_offsets(topic, partitions).await?;
                for (partition, offset) in &mut offsets {
                    let first = earliest.get(partition).copied().unwrap_or(0);
                    *offset = first.max(offset.saturating_sub(count));
                }
                Ok(offsets)
            }
            StartOffset::Time(timestamp) => {
                let ends = self.end_offsets(topic, partitions).await?;
                let mut offsets = self.list_offsets(topic, partitions, timestamp).await?;
                for (partition, offset) in &mut offsets {
                    if *offset == NO_OFFSET {
                        *offset = ends.get(partition).copied().unwrap_or(0);
                    }
                }
                Ok(offsets)
            }
        }
    }

    /// The offset after the last readable record of each partition.
    ///
    /// # Errors
    /// As [`Self::start_offsets`].
    pub async fn end_offsets(
        &mut self,
        topic: &Topic,
        partitions: &[i32],
    ) -> Result<BTreeMap<i32, i64>, ClientError> {
        self.list_offsets(topic, partitions, LATEST).await
    }

    async fn list_offsets(
        &mut self,
        topic: &Topic,
        partitions: &[i32],
        timestamp: i64,
    ) -> Result<BTreeMap<i32, i64>, ClientError> {
        let mut by_leader: HashMap<i32, Vec<i32>> = HashMap::new();
        for &partition in partitions {
            by_leader
                .entry(topic.leader(partition)?)
                .or_default()
                .push(partition);
        }
        let mut offsets = BTreeMap::new();
        for (leader, partitions) in by_leader {
            let mut connection = self.open(leader).await?;
            let request = list_offsets_request(&topic.name, &partitions, timestamp);
            let response = connection.call(&request).await?;
            for answer in response
                .topics
                .iter()
                .flat_map(|answered| &answered.partitions)
            {
                if answer.error_code != ErrorCode::None.code() {
                    let subject = format!("{}-{}", topic.name, answer.partition_index);
                    return Err(ClientError::refused(subject, answer.error_code, None));
                }
                offsets.insert(answer.partition_index, answer.offset);
            }
        }
        match partitions
            .iter()
            .find(|partition| !offsets.contains_key(*partition))
        {
            None => Ok(offsets),
            Some(partition) => Err(ClientError::refused(
                format!("{}-{partition}", topic.name),
                ErrorCode::UnknownServerError.code(),
                Some("ListOffsets left it out"),
            )),
        }
    }
}

fn list_offsets_request(topic: &str, partitions: &[i32], timestamp: i64) -> ListOffsetsRequest {
    let mut wanted = ListOffsetsTopic::default();
    wanted.name = StrBytes::from(topic);
    wanted.partitions = partitions
        .iter()
        .map(|&index| {
            let mut partition = ListOffsetsPartition::default();
            partition.partition_index = index;
            partition.current_leader_epoch = -1;
            partition.timestamp = timestamp;
            partition
        })
        .collect();
    let mut request = ListOffsetsRequest::default();
    request.replica_id = -1;
    request.topics = vec![wanted];
    request
}

#[cfg(test)]
mod tests {
    use super::StartOffset::{At, Beginning, End, Last, Time};
    use super::*;

    #[test]
    fn start_offsets_are_written_as_the_help_says() {
        for (text, start) in [
            ("beginning", Beginning),
            ("end", End),
            ("0", At(0)),
            ("-5", Last(5)),
            ("@1000", Time(1000)),
        ] {
            assert_eq!(text.parse(), Ok(start));
        }
        for bad in ["", "-", "@", "--1", "@-1", "1.5", "begin", "+", "é"] {
            assert!(bad.parse::<StartOffset>().is_err(), "{bad:?} was accepted");
        }
    }
}
