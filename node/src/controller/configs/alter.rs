//! Altering configuration: incrementally (KIP-339), or all of a resource at once.

use std::collections::{BTreeSet, HashMap};

use kittiwake_raft::image::MIN_INSYNC_REPLICAS;
use kittiwake_raft::{ClusterImage, Command, ConfigChange, ConfigResource};

use super::super::{Refusal, carry_out, fill_in};
use crate::api::ErrorCode;
use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::config::broker::BROKER_KEYS;
use crate::config::dynamic::dynamic_key;
use crate::config::kind::{Kind, list};
use crate::config::topic::{Configs, TopicKey, by_broker_key, topic_key};
use crate::config::topic_layers::validate_all;

/// What IncrementalAlterConfigs does to a key (KIP-339).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Sets it.
    Set,
    /// Returns it to its default.
    Delete,
    /// Adds words to its list.
    Append,
    /// Takes words out of its list.
    Subtract,
}

impl Operation {
    /// The operation of this number on the wire.
    pub const fn from_wire(code: i8) -> Option<Self> {
        match code {
            0 => Some(Self::Set),
            1 => Some(Self::Delete),
            2 => Some(Self::Append),
            3 => Some(Self::Subtract),
            _ => None,
        }
    }
}

/// A change of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyChange {
    /// The key.
    pub name: String,
    /// What to do to it.
    pub operation: Operation,
    /// With what; ignored by [`Operation::Delete`].
    pub value: Option<String>,
}

/// What to do to one resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Alteration {
    /// Change these keys.
    Incremental(Vec<KeyChange>),
    /// Set these and return every other to its default (the old AlterConfigs).
    Replace(Configs),
}

/// How often a change of a list is computed anew because another one of the same list came in between. Each time somebody
/// else has got his way, so only very many of them at once come to this end.
const TRIES_MAX: usize = 64;

impl Alteration {
    /// Whether it gives the key a value, whatever the value was.
    fn sets(&self, key: &str) -> bool {
        match self {
            Self::Incremental(changes) => changes
                .iter()
                .any(|change| change.operation == Operation::Set && change.name == key),
            Self::Replace(configs) => configs.contains_key(key),
        }
    }

    /// The keys it names to return them to their default.
    fn deleted(&self) -> impl Iterator<Item = &String> {
        let changes: &[KeyChange] = match self {
            Self::Incremental(changes) => changes,
            Self::Replace(_) => &[],
        };
        let deletions = changes
            .iter()
            .filter(|change| change.operation == Operation::Delete);
        deletions.map(|change| &change.name)
    }
}

/// Alters configurations; one result each. What is accepted at once is one entry of the metadata log.
///
/// # Errors
/// Of an alteration: INVALID_REQUEST, INVALID_CONFIG, UNKNOWN_TOPIC_OR_PARTITION; INVALID_UPDATE_VERSION if others changed
/// the same list each time before it was this one's turn; what the quorum answers.
pub async fn alter_configs(
    broker: &Broker,
    alterations: &[(ConfigResource, Alteration)],
    validate_only: bool,
) -> Vec<Result<(), Refusal>> {
    let mut results = try_to_alter(broker, alterations, validate_only).await;
    for _ in 1..TRIES_MAX {
        let overtaken: Vec<usize> = (0..)
            .zip(&results)
            .filter(|(_, result)| is_overtaken(result))
            .map(|(index, _)| index)
            .collect();
        if overtaken.is_empty() {
            break;
        }
        let again: Vec<_> = overtaken
            .iter()
            .map(|&index| alterations[index].clone())
            .collect();
        // A refusal is known here once this node's image has what came in between.
        let tried = try_to_alter(broker, &again, validate_only).await;
        for (index, result) in overtaken.into_iter().zip(tried) {
            results[index] = result;
        }
    }
    results
}

fn is_overtaken(result: &Result<(), Refusal>) -> bool {
    matches!(result, Err(refusal) if refusal.code == ErrorCode::InvalidUpdateVersion)
}

async fn try_to_alter(
    broker: &Broker,
    alterations: &[(ConfigResource, Alteration)],
    validate_only: bool,
) -> Vec<Result<(), Refusal>> {
    let image = broker.quorum.image();
    let mut times: HashMap<&ConfigResource, usize> = HashMap::new();
    for (resource, _) in alterations {
        *times.entry(resource).or_default() += 1;
    }
    let planned: Vec<Result<ConfigChange, Refusal>> = alterations
        .iter()
        .map(|(resource, alteration)| {
            if times.get(resource) != Some(&1) {
                return Err(Refusal::new(
                    ErrorCode::InvalidRequest,
                    "Each resource must appear at most once.",
                ));
            }
            plan(&image, &broker.config, resource, alteration)
        })
        .collect();
    let accepted: Vec<ConfigChange> = planned.iter().flatten().cloned().collect();
    if accepted.is_empty() {
        return fill_in(planned, Ok(Vec::new()), |_, _| ());
    }
    let results = carry_out(broker, Command::AlterConfigs(accepted), validate_only).await;
    fill_in(planned, results, |_, _| ())
}

fn plan(
    image: &ClusterImage,
    config: &BrokerConfig,
    resource: &ConfigResource,
    alteration: &Alteration,
) -> Result<ConfigChange, Refusal> {
    let none = Configs::new();
    let current = match resource {
        ConfigResource::Topic(name) => {
            &image
                .topic_by_name(name)
                .ok_or_else(|| Refusal::unknown_topic(name))?
                .configs
        }
        ConfigResource::Broker(broker) => image.broker_configs(*broker).unwrap_or(&none),
    };
    let after = match alteration {
        Alteration::Replace(configs) => configs.clone(),
        Alteration::Incremental(changes) => changed(resource, current, changes)?,
    };
    // What is asked for is proposed also where it is so already: this node's image may be behind, and of another one it may
    // be a change.
    let set: Vec<(String, String)> = after
        .iter()
        .filter(|(key, value)| alteration.sets(key) || current.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, _) in &set {
        check_alterable(resource, key)?;
    }
    match resource {
        ConfigResource::Topic(_) => validate_all(&after, &config.topic_defaults),
        ConfigResource::Broker(_) => set.iter().try_for_each(|(key, value)| {
            let topics = by_broker_key(key).map(|row| row.kind);
            let Some(kind) = topics.or(dynamic_key(key).map(|key| key.kind)) else {
                return Ok(());
            };
            kind.validate(value).map_err(|reason| {
                format!("Invalid value {value:?} for configuration {key}: {reason}")
            })
        }),
    }
    .map_err(|reason| Refusal::new(ErrorCode::InvalidConfig, reason))?;
    let remove: BTreeSet<&String> = current
        .keys()
        .chain(alteration.deleted())
        .filter(|key| !after.contains_key(*key))
        .collect();
    let remove = remove.into_iter().cloned().collect();
    let expected = edited_keys(alteration)
        .map(|key| (key.to_owned(), current.get(key).cloned()))
        .collect();
    Ok(ConfigChange {
        resource: resource.clone(),
        set,
        remove,
        expected,
    })
}

/// The keys whose new value is computed from the one they have.
fn edited_keys(alteration: &Alteration) -> impl Iterator<Item = &str> {
    let changes = match alteration {
        Alteration::Incremental(changes) => changes.as_slice(),
        Alteration::Replace(_) => &[],
    };
    let edits =
        |change: &&KeyChange| matches!(change.operation, Operation::Append | Operation::Subtract);
    changes
        .iter()
        .filter(edits)
        .map(|change| change.name.as_str())
}

/// Whether this key of the resource can be altered at all.
fn check_alterable(resource: &ConfigResource, key: &str) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::new(ErrorCode::InvalidRequest, message));
    match resource {
        // Unknown keys are validation's to refuse.
        ConfigResource::Topic(_) => Ok(()),
        ConfigResource::Broker(Some(_)) if key == MIN_INSYNC_REPLICAS => refuse(format!(
            "{key} is set for a topic or for all brokers, not for one."
        )),
        ConfigResource::Broker(_) if by_broker_key(key).is_some() || dynamic_key(key).is_some() => {
            Ok(())
        }
        ConfigResource::Broker(_) if BROKER_KEYS.iter().any(|row| row.name == key) => {
            refuse(format!(
                "Cannot update {key} dynamically: it is read from the broker's configuration file at start."
            ))
        }
        ConfigResource::Broker(_) => refuse(format!("Unknown broker config name: {key}")),
    }
}

fn changed(
    resource: &ConfigResource,
    current: &Configs,
    changes: &[KeyChange],
) -> Result<Configs, Refusal> {
    let mut after = current.clone();
    let mut seen = BTreeSet::new();
    for change in changes {
        let KeyChange {
            name,
            operation,
            value,
        } = change;
        let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidRequest, message));
        if !seen.insert(name) {
            return invalid(format!("The key {name} appears twice."));
        }
        let value = match (operation, value) {
            (Operation::Delete, _) => {
                after.remove(name);
                continue;
            }
            (_, None) => return invalid(format!("The key {name} has no value.")),
            (_, Some(value)) => value,
        };
        let value = match operation {
            Operation::Set | Operation::Delete => value.clone(),
            Operation::Append | Operation::Subtract => {
                edited(resource, &after, name, *operation, value)?
            }
        };
        after.insert(name.clone(), value);
    }
    Ok(after)
}

/// The list of `name` with words added or taken out; what is not set starts from the default.
fn edited(
    resource: &ConfigResource,
    current: &Configs,
    name: &str,
    operation: Operation,
    words: &str,
) -> Result<String, Refusal> {
    let row = match resource {
        ConfigResource::Topic(_) => topic_key(name),
        ConfigResource::Broker(_) => by_broker_key(name),
    };
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidConfig, message));
    let Some(TopicKey {
        kind: kind @ (Kind::SomeOf(_) | Kind::Replicas),
        default,
        ..
    }) = row
    else {
        return invalid(format!(
            "Words cannot be added to or taken out of {name}: it is not a list."
        ));
    };
    // Before anything grows by them.
    if let Some(word) = list(words).find(|word| !kind.takes_word(word)) {
        return invalid(format!("{word:?} cannot be a word of {name}."));
    }
    let mut after: Vec<&str> = list(current.get(name).map_or(*default, String::as_str)).collect();
    if operation == Operation::Subtract {
        let taken: BTreeSet<&str> = list(words).collect();
        after.retain(|word| !taken.contains(word));
    } else {
        let mut there: BTreeSet<&str> = after.iter().copied().collect();
        after.extend(list(words).filter(|word| there.insert(word)));
    }
    Ok(after.join(","))
}

#[cfg(test)]
mod tests {
    use kittiwake_raft::BrokerId;

    use super::*;
    use crate::controller::tests_support::image_with_topic;

    const TOPIC: &str = "t";

    fn topic() -> ConfigResource {
        ConfigResource::Topic(TOPIC.into())
    }

    fn incremental(
        resource: &ConfigResource,
        changes: &[(&str, Operation, Option<&str>)],
    ) -> Result<ConfigChange, ErrorCode> {
        let image = image_with_topic(
            TOPIC,
            &[("cleanup.policy", "compact"), ("retention.ms", "5")],
        );
        let changes = changes
            .iter()
            .map(|(name, operation, value)| KeyChange {
                name: (*name).into(),
                operation: *operation,
                value: value.map(str::to_owned),
            })
            .collect();
        plan(
            &image,
            &BrokerConfig::default(),
            resource,
            &Alteration::Incremental(changes),
        )
        .map_err(|refusal| refusal.code)
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.into(), value.into())
    }

    #[test]
    fn incremental_changes_leave_the_rest_alone() {
        let set = incremental(&topic(), &[("segment.ms", Operation::Set, Some("7"))]).unwrap();
        assert_eq!(
            (set.set, set.remove),
            (vec![pair("segment.ms", "7")], vec![])
        );
        let deleted = incremental(&topic(), &[("retention.ms", Operation::Delete, None)]).unwrap();
        assert_eq!(
            (deleted.set, deleted.remove),
            (vec![], vec!["retention.ms".to_owned()])
        );
    }

    /// Another node's image may be ahead, and the change is carried out in the quorum's.
    #[test]
    fn what_is_so_already_here_is_proposed_all_the_same() {
        let same = incremental(&topic(), &[("retention.ms", Operation::Set, Some("5"))]).unwrap();
        assert_eq!(same.set, [pair("retention.ms", "5")]);
        let gone = incremental(&topic(), &[("segment.ms", Operation::Delete, None)]).unwrap();
        assert_eq!(gone.remove, ["segment.ms"]);
    }

    #[test]
    fn lists_are_appended_to_and_subtracted_from() {
        let both = incremental(
            &topic(),
            &[("cleanup.policy", Operation::Append, Some("delete"))],
        )
        .unwrap();
        assert_eq!(both.set, [pair("cleanup.policy", "compact,delete")]);
        assert_eq!(
            both.expected,
            [("cleanup.policy".to_owned(), Some("compact".to_owned()))],
            "nobody else's edit is lost"
        );
        let same = incremental(
            &topic(),
            &[("cleanup.policy", Operation::Append, Some("compact"))],
        )
        .unwrap();
        assert_eq!(same.set, []);
        assert_eq!(
            incremental(
                &topic(),
                &[("cleanup.policy", Operation::Subtract, Some("compact"))]
            ),
            Err(ErrorCode::InvalidConfig),
            "no policy is left"
        );
        assert_eq!(
            incremental(&topic(), &[("retention.ms", Operation::Append, Some("1"))]),
            Err(ErrorCode::InvalidConfig)
        );
    }

    #[test]
    fn throttled_replicas_are_a_list() {
        let key = "leader.replication.throttled.replicas";
        let altered = |operation, value| {
            let change = incremental(&topic(), &[(key, operation, Some(value))])?;
            Ok(change.set.into_iter().next().map(|(_, value)| value))
        };
        let set = |value: &str| Ok(Some(value.to_owned()));
        assert_eq!(altered(Operation::Set, "0:1,0:2"), set("0:1,0:2"));
        assert_eq!(altered(Operation::Set, "*"), set("*"));
        assert_eq!(altered(Operation::Append, "0:1,1:0"), set("0:1,1:0"));
        for wrong in ["0", "0:1,*", "1:0:2"] {
            assert_eq!(
                altered(Operation::Set, wrong),
                Err(ErrorCode::InvalidConfig),
                "{wrong}"
            );
            assert_eq!(
                altered(Operation::Append, wrong),
                Err(ErrorCode::InvalidConfig),
                "{wrong}"
            );
        }
    }

    #[test]
    fn bad_changes_are_refused_by_kafkas_codes() {
        let (one, all) = (
            ConfigResource::Broker(Some(BrokerId(0))),
            ConfigResource::Broker(None),
        );
        let set = |key, value| [(key, Operation::Set, Some(value))];
        for (resource, changes, code) in [
            (topic(), set("retention", "1"), ErrorCode::InvalidConfig),
            (
                topic(),
                set("retention.ms", "soon"),
                ErrorCode::InvalidConfig,
            ),
            (
                topic(),
                [("retention.ms", Operation::Set, None)],
                ErrorCode::InvalidRequest,
            ),
            (
                ConfigResource::Topic("u".into()),
                set("retention.ms", "1"),
                ErrorCode::UnknownTopicOrPartition,
            ),
            (
                all.clone(),
                set("log.retention.ms", "soon"),
                ErrorCode::InvalidConfig,
            ),
            (
                one.clone(),
                set("leader.replication.throttled.rate", "-1"),
                ErrorCode::InvalidConfig,
            ),
            (
                all.clone(),
                set("num.partitions", "2"),
                ErrorCode::InvalidRequest,
            ),
            (
                all.clone(),
                set("retention.ms", "1"),
                ErrorCode::InvalidRequest,
            ),
            (
                one,
                set("min.insync.replicas", "1"),
                ErrorCode::InvalidRequest,
            ),
        ] {
            assert_eq!(
                incremental(&resource, &changes),
                Err(code),
                "{resource:?} {changes:?}"
            );
        }
        assert!(incremental(&all, &set("min.insync.replicas", "1")).is_ok());
        assert!(incremental(&all, &set("follower.replication.throttled.rate", "1")).is_ok());
        let twice = [
            ("retention.ms", Operation::Set, Some("1")),
            ("retention.ms", Operation::Delete, None),
        ];
        assert_eq!(
            incremental(&topic(), &twice),
            Err(ErrorCode::InvalidRequest)
        );
    }

    #[test]
    fn replacing_returns_the_rest_to_its_default() {
        let image = image_with_topic(
            TOPIC,
            &[("cleanup.policy", "compact"), ("retention.ms", "5")],
        );
        let replace = Alteration::Replace([pair("retention.ms", "6")].into());
        let change = plan(&image, &BrokerConfig::default(), &topic(), &replace).unwrap();
        assert_eq!(
            (change.set, change.remove),
            (
                vec![pair("retention.ms", "6")],
                vec!["cleanup.policy".to_owned()]
            )
        );
    }
}
