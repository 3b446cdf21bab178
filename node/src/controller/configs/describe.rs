//! What configuration holds for a topic or a broker, and where it comes from.

use kittiwake_raft::{ClusterImage, ConfigResource};

use super::super::Refusal;
use crate::api::ErrorCode;
use crate::config::BrokerConfig;
use crate::config::broker::BROKER_KEYS;
use crate::config::dynamic::{DYNAMIC_KEYS, DynamicKey, dynamic_key};
use crate::config::kind::{Kind, WireType};
use crate::config::topic::{TOPIC_KEYS, TopicKey, by_broker_key};
use crate::config::topic_layers::{Layers, Source};

/// One key of a resource, as it holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigEntry {
    /// The key.
    pub name: &'static str,
    /// Its value; `None` only where a broker key has no value at all.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: Source,
    /// It cannot be altered by request.
    pub read_only: bool,
    /// Its type.
    pub wire_type: WireType,
    /// Every place that has a value for it, the one that holds first.
    pub synonyms: Vec<Synonym>,
    /// What it does.
    pub doc: &'static str,
}

/// A value of a key at one place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Synonym {
    /// The name it has there.
    pub name: &'static str,
    /// Its value there.
    pub value: String,
    /// The place.
    pub source: Source,
}

/// The configuration of a resource: of a topic, of this broker, or what is set for all brokers.
///
/// # Errors
/// UNKNOWN_TOPIC_OR_PARTITION, INVALID_TOPIC_EXCEPTION, or INVALID_REQUEST for another broker, whose file is not known here.
pub fn describe_configs(
    image: &ClusterImage,
    config: &BrokerConfig,
    resource: &ConfigResource,
) -> Result<Vec<ConfigEntry>, Refusal> {
    match resource {
        ConfigResource::Topic(name) => {
            kittiwake_raft::image::validate_topic_name(name)?;
            let topic = image
                .topic_by_name(name)
                .ok_or_else(|| Refusal::unknown_topic(name))?;
            let layers = Layers::new(image, config, Some(topic));
            Ok(TOPIC_KEYS
                .iter()
                .map(|row| topic_entry(row, row.name, &layers))
                .collect())
        }
        ConfigResource::Broker(None) => {
            let set = image.broker_configs(None);
            let entry = |(name, value): (&String, &String)| match dynamic_key(name) {
                Some(key) => Some(dynamic_entry(key, [(Source::Cluster, value.as_str())])),
                None => cluster_entry(by_broker_key(name)?, value),
            };
            Ok(set.into_iter().flatten().filter_map(entry).collect())
        }
        ConfigResource::Broker(Some(id)) if *id == config.node_id => {
            let layers = Layers::new(image, config, None);
            let defaults = TOPIC_KEYS
                .iter()
                .filter_map(|row| Some(topic_entry(row, row.broker_key?, &layers)));
            let dynamic = DYNAMIC_KEYS
                .iter()
                .map(|key| dynamic_entry(key, key.synonyms(image, *id)));
            let mut entries: Vec<ConfigEntry> =
                defaults.chain(own_entries(config)).chain(dynamic).collect();
            entries.sort_by_key(|entry| entry.name);
            Ok(entries)
        }
        ConfigResource::Broker(Some(id)) => Err(Refusal::new(
            ErrorCode::InvalidRequest,
            format!(
                "Broker {} cannot describe broker {id}: ask that one.",
                config.node_id
            ),
        )),
    }
}

fn topic_entry(row: &'static TopicKey, name: &'static str, layers: &Layers<'_>) -> ConfigEntry {
    let synonyms: Vec<Synonym> = layers
        .synonyms(row)
        .into_iter()
        .map(|found| Synonym {
            name: found.name,
            value: found.value.into_owned(),
            source: found.source,
        })
        .collect();
    let first = synonyms.first();
    ConfigEntry {
        name,
        value: first.map(|found| found.value.clone()),
        source: first.map_or(Source::Default, |found| found.source),
        read_only: !is_alterable(row),
        wire_type: row.kind.wire_type(),
        synonyms,
        doc: row.doc,
    }
}

fn cluster_entry(row: &'static TopicKey, value: &str) -> Option<ConfigEntry> {
    let name = row.broker_key?;
    Some(ConfigEntry {
        name,
        value: Some(value.to_owned()),
        source: Source::Cluster,
        read_only: !is_alterable(row),
        wire_type: row.kind.wire_type(),
        synonyms: vec![Synonym {
            name,
            value: value.to_owned(),
            source: Source::Cluster,
        }],
        doc: row.doc,
    })
}

fn dynamic_entry<'a>(
    key: &'static DynamicKey,
    values: impl IntoIterator<Item = (Source, &'a str)>,
) -> ConfigEntry {
    let synonym = |(source, value): (Source, &str)| Synonym {
        name: key.name,
        value: value.to_owned(),
        source,
    };
    let synonyms: Vec<Synonym> = values.into_iter().map(synonym).collect();
    let first = synonyms.first();
    ConfigEntry {
        name: key.name,
        value: first.map(|found| found.value.clone()),
        source: first.map_or(Source::Default, |found| found.source),
        read_only: false,
        wire_type: key.kind.wire_type(),
        synonyms,
        doc: key.doc,
    }
}

/// The keys of the broker's file that are not about topics.
fn own_entries(config: &BrokerConfig) -> impl Iterator<Item = ConfigEntry> {
    BROKER_KEYS.iter().map(|row| {
        let at = |value: &str, source| Synonym {
            name: row.name,
            value: value.to_owned(),
            source,
        };
        let given = config.given(row.name).map(|value| at(value, Source::File));
        let default = row.default.map(|value| at(value, Source::Default));
        let synonyms: Vec<Synonym> = given.into_iter().chain(default).collect();
        ConfigEntry {
            name: row.name,
            value: synonyms.first().map(|found| found.value.clone()),
            source: synonyms
                .first()
                .map_or(Source::Default, |found| found.source),
            read_only: true,
            wire_type: row.wire_type,
            synonyms,
            doc: row.doc,
        }
    })
}

fn is_alterable(row: &TopicKey) -> bool {
    !matches!(row.kind, Kind::Only { .. })
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::BrokerId;

    use super::*;
    use crate::controller::tests_support::{image_of, image_with_topic};

    const TOPIC: &str = "t";

    fn topic() -> ConfigResource {
        ConfigResource::Topic(TOPIC.into())
    }

    #[test]
    fn a_topic_shows_every_key_and_where_it_comes_from() {
        let image = image_with_topic(TOPIC, &[("retention.ms", "5")]);
        let entries = describe_configs(&image, &BrokerConfig::default(), &topic()).unwrap();
        assert_eq!(entries.len(), TOPIC_KEYS.len());
        let find = |name| entries.iter().find(|entry| entry.name == name).unwrap();
        assert_eq!(
            (
                find("retention.ms").value.as_deref(),
                find("retention.ms").source
            ),
            (Some("5"), Source::Topic)
        );
        assert_eq!(find("retention.ms").synonyms.len(), 2);
        assert!(find("compression.type").read_only && !find("retention.ms").read_only);
    }

    #[test]
    fn a_broker_shows_its_file_and_the_defaults_of_topics() {
        let image = image_of(1);
        let config = BrokerConfig::default();
        let own = ConfigResource::Broker(Some(config.node_id));
        let entries = describe_configs(&image, &config, &own).unwrap();
        assert!(
            entries.windows(2).all(|pair| pair[0].name < pair[1].name),
            "sorted, none twice"
        );
        let find = |name| entries.iter().find(|entry| entry.name == name).unwrap();
        assert!(!find("log.retention.ms").read_only);
        assert!(find("num.partitions").read_only);
        assert!(!find("leader.replication.throttled.rate").read_only);
        let other = ConfigResource::Broker(Some(BrokerId(77)));
        assert!(describe_configs(&image, &config, &other).is_err());
        assert_eq!(
            describe_configs(&image, &config, &ConfigResource::Broker(None)),
            Ok(vec![])
        );
    }
}
