//! Where partitions live, and topics that are made when they are missing.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_wire::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_wire::metadata_request::MetadataRequestTopic;
use kafka_wire::{CreateTopicsRequest, MetadataRequest, MetadataResponse};
use kafka_wire_core::StrBytes;
use tokio::time::{Instant, sleep};

use super::{ClientError, Connection, ConnectionConfig};
use crate::api::error::ErrorCode;

/// Pause between two attempts at something the cluster has not finished yet.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Kafka's "no leader".
const NO_LEADER: i32 = -1;

/// A partition and the broker that leads it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PartitionLeader {
    /// The partition's number.
    pub partition: i32,
    /// The leading broker's id.
    pub leader: i32,
}

/// A topic whose partitions all have leaders.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// In the order of their numbers.
    pub partitions: Vec<PartitionLeader>,
}

impl Topic {
    /// The broker that leads `partition`.
    ///
    /// # Errors
    /// [`ClientError::NoPartition`].
    pub fn leader(&self, partition: i32) -> Result<i32, ClientError> {
        self.partitions
            .iter()
            .find(|known| known.partition == partition)
            .map(|known| known.leader)
            .ok_or_else(|| ClientError::NoPartition {
                topic: self.name.clone(),
                partition,
                partitions: self.partitions.len(),
            })
    }
}

/// A topic to create.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Number of partitions; -1 for the broker's default.
    pub partitions: i32,
    /// Number of replicas; -1 for the broker's default.
    pub replication_factor: i16,
    /// Topic configuration, `(key, value)`.
    pub configs: Vec<(String, String)>,
}

/// A cluster, known by its bootstrap addresses and what its metadata says.
#[derive(Debug)]
pub struct Client {
    bootstrap: Vec<String>,
    config: ConnectionConfig,
    brokers: BTreeMap<i32, String>,
    controller: i32,
    seed: Option<Connection>,
}

impl Client {
    /// Connects to the first of `HOST:PORT[,HOST:PORT...]` that answers.
    ///
    /// # Errors
    /// A malformed list, or no broker that answers.
    pub async fn connect(bootstrap: &str, config: ConnectionConfig) -> Result<Self, ClientError> {
        let mut client = Self {
            bootstrap: parse_bootstrap(bootstrap)?,
            config,
            brokers: BTreeMap::new(),
            controller: NO_LEADER,
            seed: None,
        };
        client.refresh(None, false).await?;
        Ok(client)
    }

    /// A new connection to the broker with this id.
    ///
    /// # Errors
    /// The broker is unknown or does not answer.
    pub async fn open(&self, broker: i32) -> Result<Connection, ClientError> {
        Connection::open(&self.address_of(broker)?, &self.config).await
    }

    /// HOST:PORT of the broker with this id, as the last metadata said.
    pub(crate) fn address_of(&self, broker: i32) -> Result<String, ClientError> {
        self.brokers.get(&broker).cloned().ok_or_else(|| {
            let code = ErrorCode::BrokerNotAvailable.code();
            ClientError::refused(
                format!("broker {broker}"),
                code,
                Some("not in the cluster's metadata"),
            )
        })
    }

    /// What every connection to this cluster is opened with.
    pub(crate) fn connection_config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// The topic with the leader of every partition, waiting for leaders that are being elected.
    /// `create` asks the broker to create a missing topic, which it does if its own setting says so.
    ///
    /// # Errors
    /// The topic does not exist, its name is invalid, or a partition stays without a leader.
    pub async fn topic(&mut self, name: &str, create: bool) -> Result<Topic, ClientError> {
        let started = Instant::now();
        loop {
            let response = self.refresh(Some(name), create).await;
            let error = match response.and_then(|response| topic_of(&response, name)) {
                Ok(topic) => return Ok(topic),
                Err(error) => error,
            };
            let missing = error.is_refusal(ErrorCode::UnknownTopicOrPartition) && !create;
            if missing || !error.is_retriable() {
                return Err(error);
            }
            if started.elapsed() >= self.config.timeout {
                return Err(ClientError::GaveUp {
                    after: started.elapsed(),
                    reason: Box::new(error),
                });
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Creates a topic and waits until all its partitions have leaders. One that exists already is
    /// taken as it is.
    ///
    /// # Errors
    /// The broker's refusal (name, number of partitions, replication factor, configuration).
    pub async fn ensure_topic(&mut self, new: &NewTopic) -> Result<Topic, ClientError> {
        let timeout_ms = i32::try_from(self.config.timeout.as_millis()).unwrap_or(i32::MAX);
        let request = create_topics_request(new, timeout_ms);
        let target = if self.brokers.contains_key(&self.controller) {
            Some(self.controller)
        } else {
            self.brokers.keys().next().copied()
        };
        let mut connection = match target {
            Some(broker) => self.open(broker).await?,
            None => self.take_seed().await?,
        };
        let response = connection.call(&request).await?;
        for result in &response.topics {
            let code = result.error_code;
            if code != ErrorCode::None.code() && code != ErrorCode::TopicAlreadyExists.code() {
                let message = result.error_message.as_ref().map(StrBytes::as_str);
                return Err(ClientError::refused(
                    format!("topic {}", new.name),
                    code,
                    message,
                ));
            }
        }
        self.created_topic(&new.name).await
    }

    /// Brokers answer CreateTopics before each of them has heard of the topic, and name a leader
    /// before it leads: the topic is there when every leader answers for its partitions.
    async fn created_topic(&mut self, name: &str) -> Result<Topic, ClientError> {
        let started = Instant::now();
        loop {
            let error = match self.led_topic(name).await {
                Err(error) if error.is_retriable() && started.elapsed() < self.config.timeout => {
                    error
                }
                other => return other,
            };
            tracing::debug!(topic = name, %error, "waiting for the new topic");
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn led_topic(&mut self, name: &str) -> Result<Topic, ClientError> {
        let topic = self.topic(name, false).await?;
        let partitions: Vec<i32> = topic
            .partitions
            .iter()
            .map(|known| known.partition)
            .collect();
        self.end_offsets(&topic, &partitions).await?;
        Ok(topic)
    }

    /// Asks any broker for the cluster's members and, if named, one topic.
    async fn refresh(
        &mut self,
        topic: Option<&str>,
        create: bool,
    ) -> Result<MetadataResponse, ClientError> {
        let mut connection = self.take_seed().await?;
        let mut request = MetadataRequest::default();
        request.topics = Some(topic.map(metadata_topic).into_iter().collect());
        request.allow_auto_topic_creation = create;
        let response = connection.call(&request).await?;
        self.brokers = response
            .brokers
            .iter()
            .map(|broker| (broker.node_id, format!("{}:{}", broker.host, broker.port)))
            .collect();
        self.controller = response.controller_id;
        self.seed = Some(connection);
        Ok(response)
    }

    /// The connection for metadata: the one at hand, else the first address that answers, known
    /// brokers included (a bootstrap list may name only brokers that are gone by now).
    async fn take_seed(&mut self) -> Result<Connection, ClientError> {
        if let Some(connection) = self.seed.take() {
            return Ok(connection);
        }
        let mut last = None;
        for address in self.bootstrap.iter().chain(self.brokers.values()) {
            match Connection::open(address, &self.config).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        let bootstrap = self.bootstrap.join(",");
        Err(match last {
            Some(error) => ClientError::NoBroker {
                bootstrap,
                reason: Box::new(error),
            },
            None => ClientError::BadAddress { address: bootstrap },
        })
    }
}

fn parse_bootstrap(bootstrap: &str) -> Result<Vec<String>, ClientError> {
    let bad = |address: &str| ClientError::BadAddress {
        address: address.to_owned(),
    };
    bootstrap
        .split(',')
        .map(str::trim)
        .map(|address| match address.rsplit_once(':') {
            Some((host, port))
                if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) =>
            {
                Ok(address.to_owned())
            }
            _ => Err(bad(bootstrap)),
        })
        .collect()
}

fn metadata_topic(name: &str) -> MetadataRequestTopic {
    let mut topic = MetadataRequestTopic::default();
    topic.name = Some(StrBytes::from(name));
    topic
}

fn create_topics_request(new: &NewTopic, timeout_ms: i32) -> CreateTopicsRequest {
    let mut topic = CreatableTopic::default();
    topic.name = StrBytes::from(new.name.as_str());
    topic.num_partitions = new.partitions;
    topic.replication_factor = new.replication_factor;
    topic.configs = new
        .configs
        .iter()
        .map(|(key, value)| {
            let mut config = CreatableTopicConfig::default();
            config.name = StrBytes::from(key.as_str());
            config.value = Some(StrBytes::from(value.as_str()));
            config
        })
        .collect();
    let mut request = CreateTopicsRequest::default();
    request.topics = vec![topic];
    request.timeout_ms = timeout_ms;
    request
}

fn topic_of(response: &MetadataResponse, name: &str) -> Result<Topic, ClientError> {
    let answered = response.topics.iter().find(|topic| {
        topic
            .name
            .as_ref()
            .is_some_and(|answered| answered.as_str() == name)
    });
    let Some(answered) = answered else {
        let code = ErrorCode::UnknownTopicOrPartition.code();
        return Err(ClientError::refused(format!("topic {name}"), code, None));
    };
    if answered.error_code != ErrorCode::None.code() {
        return Err(ClientError::refused(
            format!("topic {name}"),
            answered.error_code,
            None,
        ));
    }
    let mut partitions = Vec::with_capacity(answered.partitions.len());
    for partition in &answered.partitions {
        if partition.leader_id == NO_LEADER {
            let subject = format!("{name}-{}", partition.partition_index);
            return Err(ClientError::refused(
                subject,
                ErrorCode::LeaderNotAvailable.code(),
                None,
            ));
        }
        partitions.push(PartitionLeader {
            partition: partition.partition_index,
            leader: partition.leader_id,
        });
    }
    if partitions.is_empty() {
        // A topic that is being created can be known before its partitions are.
        let code = ErrorCode::LeaderNotAvailable.code();
        return Err(ClientError::refused(
            format!("topic {name}"),
            code,
            Some("no partitions yet"),
        ));
    }
    partitions.sort_by_key(|known| known.partition);
    Ok(Topic {
        name: name.to_owned(),
        partitions,
    })
}

#[cfg(test)]
mod tests {
    use kafka_wire::metadata_response::{MetadataResponsePartition, MetadataResponseTopic};

    use super::*;

    fn response(leaders: &[i32]) -> MetadataResponse {
        let mut topic = MetadataResponseTopic::default();
        topic.name = Some(StrBytes::from("logs"));
        topic.partitions = leaders
            .iter()
            .enumerate()
            .rev()
            .map(|(index, &leader)| {
                let mut partition = MetadataResponsePartition::default();
                partition.partition_index = index as i32;
                partition.leader_id = leader;
                partition
            })
            .collect();
        let mut response = MetadataResponse::default();
        response.topics = vec![topic];
        response
    }

    #[test]
    fn partitions_come_in_order_whatever_the_broker_sends() {
        let topic = topic_of(&response(&[1, 2, 3]), "logs").unwrap();
        let numbers: Vec<_> = topic
            .partitions
            .iter()
            .map(|known| (known.partition, known.leader))
            .collect();
        assert_eq!(numbers, [(0, 1), (1, 2), (2, 3)]);
        assert!(matches!(
            topic.leader(3),
            Err(ClientError::NoPartition { partitions: 3, .. })
        ));
    }

    #[test]
    fn a_partition_without_leader_is_worth_a_retry_and_a_missing_topic_is_named() {
        assert!(
            topic_of(&response(&[1, -1]), "logs")
                .unwrap_err()
                .is_retriable()
        );
        assert!(topic_of(&response(&[]), "logs").unwrap_err().is_retriable());
        let missing = topic_of(&response(&[1]), "other").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "topic other: UNKNOWN_TOPIC_OR_PARTITION"
        );
    }

    #[test]
    fn bootstrap_lists_are_checked_before_anything_is_sent() {
        assert_eq!(parse_bootstrap("a:1, [::1]:2").unwrap(), ["a:1", "[::1]:2"]);
        for bad in ["", "a", "a:", ":1", "a:0", "a:70000", "a:1,"] {
            assert!(parse_bootstrap(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
