//! From a file and the environment to a [`BrokerConfig`], or to everything that is wrong with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fmt, fs, io};

use super::broker::{BROKER_KEYS, BrokerConfig};
use super::file;
use super::topic::{TOPIC_KEYS, TopicDefaults};

/// What environment variables that override keys begin with.
pub const ENV_PREFIX: &str = "KITTIWAKE_";

/// Other names differ from a known key by at most this many edits to be suggested.
const SUGGESTION_EDITS_MAX: usize = 3;

/// A configuration that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: BrokerConfig,
    /// Variables that begin with `KITTIWAKE_` and name no key. Not refused: Kubernetes sets such variables for every
    /// service called kittiwake.
    pub unknown_variables: Vec<String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Where the value was found: `kittiwake.toml:7`, `environment variable …`; the file for what is missing.
    pub place: String,
    /// The key, if it is about one.
    pub key: Option<String>,
    /// The value, if there is one.
    pub value: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        match (&self.key, &self.value) {
            (Some(key), Some(value)) => write!(f, "{key} = {value:?}: {}", self.reason),
            (Some(key), None) => write!(f, "{key}: {}", self.reason),
            (None, _) => write!(f, "{}", self.reason),
        }
    }
}

/// Why a configuration cannot be used: all its faults, one a line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct Invalid {
    /// At least one.
    pub faults: Vec<Fault>,
}

impl Invalid {
    fn lines(&self) -> String {
        self.faults
            .iter()
            .map(Fault::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Why a configuration was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it says cannot be used.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Loads a file with this process's environment over it.
///
/// # Errors
/// See [`LoadError`].
pub fn load_file(path: &Path) -> Result<Loaded, LoadError> {
    let text = fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    // What is not UTF-8 names no key of ours.
    let variables = env::vars_os().filter_map(|(name, value)| {
        let name = name
            .into_string()
            .ok()
            .filter(|name| name.starts_with(ENV_PREFIX))?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    Ok(load(&path.display().to_string(), &text, variables)?)
}

/// Loads the text of the file called `name` and `variables` over it.
///
/// # Errors
/// Every fault of both.
pub fn load(
    name: &str,
    text: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, Invalid> {
    let mut loading = Loading {
        file: name,
        ..Loading::default()
    };
    loading.file(text);
    loading.environment(variables);
    loading.finish()
}

#[derive(Default)]
struct Loading<'a> {
    file: &'a str,
    /// Values by key, each with where it was found; the environment's replace the file's.
    values: BTreeMap<&'static str, (String, String)>,
    unknown_variables: Vec<String>,
    faults: Vec<Fault>,
}

impl Loading<'_> {
    fn file(&mut self, text: &str) {
        let (entries, flaws) = file::parse(text);
        for flaw in flaws {
            let place = flaw.line.map_or_else(
                || self.file.to_owned(),
                |line| format!("{}:{line}", self.file),
            );
            self.faults.push(Fault {
                place,
                key: None,
                value: None,
                reason: flaw.reason,
            });
        }
        for entry in entries {
            let place = format!("{}:{}", self.file, entry.line);
            let Some(key) = known(&entry.key) else {
                let reason = unknown_key(&entry.key);
                self.faults.push(Fault {
                    place,
                    key: Some(entry.key),
                    value: None,
                    reason,
                });
                continue;
            };
            if let Some((_, first)) = self.values.get(key) {
                let reason = format!("it is set already, at {first}");
                self.faults.push(Fault {
                    place,
                    key: Some(entry.key),
                    value: Some(entry.value),
                    reason,
                });
                continue;
            }
            self.values.insert(key, (entry.value, place));
        }
    }

    fn environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        let by_variable: BTreeMap<String, &str> = keys().map(|key| (variable(key), key)).collect();
        for (name, value) in variables {
            if let Some(key) = by_variable.get(&name) {
                self.values
                    .insert(key, (value, format!("environment variable {name}")));
            } else if name.starts_with(ENV_PREFIX) {
                self.unknown_variables.push(name);
            }
        }
        self.unknown_variables.sort_unstable();
    }

    fn finish(mut self) -> Result<Loaded, Invalid> {
        let mut topic_defaults = TopicDefaults::default();
        let mut given = BTreeMap::new();
        for (key, (value, place)) in &self.values {
            if let Some(Err(reason)) = topic_defaults.set(key, value) {
                let (key, value) = (Some((*key).to_owned()), Some(value.clone()));
                self.faults.push(Fault {
                    place: place.clone(),
                    key,
                    value,
                    reason,
                });
            }
            given.insert(*key, value.clone());
        }
        let (values, file, faults) = (&self.values, self.file, &mut self.faults);
        let place = |key: &str| {
            values
                .get(key)
                .map_or_else(|| file.to_owned(), |(_, place)| place.clone())
        };
        let config = BrokerConfig::from_given(given, topic_defaults, |key, value, reason| {
            faults.push(Fault {
                place: place(key),
                key: Some(key.into()),
                value: value.map(str::to_owned),
                reason,
            });
        });
        for (key, reason) in config.iter().flat_map(BrokerConfig::contradictions) {
            let value = values.get(key).map(|(value, _)| value.clone());
            faults.push(Fault {
                place: place(key),
                key: Some(key.into()),
                value,
                reason,
            });
        }
        match config {
            Some(config) if faults.is_empty() => Ok(Loaded {
                config,
                unknown_variables: self.unknown_variables,
            }),
            _ => Err(Invalid {
                faults: self.faults,
            }),
        }
    }
}

/// Every key a file may have.
fn keys() -> impl Iterator<Item = &'static str> {
    let topics = TOPIC_KEYS
        .iter()
        .flat_map(super::topic::TopicKey::broker_keys);
    BROKER_KEYS.iter().map(|key| key.name).chain(topics)
}

fn known(name: &str) -> Option<&'static str> {
    keys().find(|key| *key == name)
}

/// The environment variable that overrides a key.
fn variable(key: &str) -> String {
    format!(
        "{ENV_PREFIX}{}",
        key.strip_prefix("kittiwake.")
            .unwrap_or(key)
            .replace('.', "_")
            .to_ascii_uppercase()
    )
}

fn unknown_key(name: &str) -> String {
    let nearest = keys().map(|key| (edits(name, key), key)).min();
    match nearest {
        Some((distance, key)) if distance <= SUGGESTION_EDITS_MAX => {
            format!("unknown key; did you mean {key}?")
        }
        _ => "unknown key".into(),
    }
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "node.id = 3\ncluster.id = 'test'\ncluster.voters = ['3@localhost:1']\nlog.dirs = '/data'\n";

    fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, Invalid> {
        load(
            "k.toml",
            text,
            variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    fn faults(text: &str) -> Vec<String> {
        load_text(text, &[])
            .unwrap_err()
            .faults
            .iter()
            .map(Fault::to_string)
            .collect()
    }

    #[test]
    fn the_smallest_file_is_enough() {
        let config = load_text(MINIMAL, &[]).unwrap().config;
        assert_eq!(config.node_id.0, 3);
        assert_eq!(config.num_partitions, 1);
        assert_eq!(config.given("num.partitions"), None);
        assert_eq!(config.given("log.dirs"), Some("/data"));
    }

    #[test]
    fn all_faults_are_reported_at_once_with_key_value_reason_and_line() {
        let text = "node.id = -1\nnum.partitons = 3\nlog.retention.ms = 'soon'\nlog.dirs = '/a,/b'\n\
                    auto.create.topics.enable = 'yes'\nx = 1979-05-27\nwhat.is.this = 1\n";
        let faults = faults(text);
        let expected = [
            "k.toml:1: node.id = \"-1\": it must be at least 0",
            "k.toml:2: num.partitons: unknown key; did you mean num.partitions?",
            "k.toml:3: log.retention.ms = \"soon\": it must be a 64-bit number, at least -1",
            "k.toml:4: log.dirs = \"/a,/b\": this version uses one directory; run one node per disk",
            "k.toml:5: auto.create.topics.enable = \"yes\": it must be true or false",
            "k.toml:6: x: a date is not a value of any key",
            "k.toml:7: what.is.this: unknown key",
            "k.toml: cluster.id: it has no default and must be set",
            "k.toml: cluster.voters: it has no default and must be set",
        ];
        for line in expected {
            assert!(
                faults.iter().any(|fault| fault == line),
                "{line}\nis not among\n{}",
                faults.join("\n")
            );
        }
        assert_eq!(faults.len(), expected.len(), "{}", faults.join("\n"));
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        let text = format!(
            "{MINIMAL}listeners = 'A://:9,B://localhost:9'\nadvertised.listeners = 'X://a:1'\n\
             group.min.session.timeout.ms = 2000000\nqueued.max.request.bytes = 2000\n"
        );
        let faults = faults(&text);
        for part in [
            "used by another listener",
            "no listener called X",
            "group.max.session",
            "could never be read",
        ] {
            assert!(
                faults.iter().any(|fault| fault.contains(part)),
                "{part}: {}",
                faults.join("\n")
            );
        }
        assert_eq!(faults.len(), 4, "{}", faults.join("\n"));
    }

    #[test]
    fn the_environment_overrides_the_file_and_is_judged_alike() {
        let text = format!("{MINIMAL}num.partitions = 2\n");
        let variables = [
            ("KITTIWAKE_NUM_PARTITIONS", "7"),
            ("KITTIWAKE_PORT_9092_TCP", "x"),
            ("KITTIWAKE_DURABILITY", "persisted"),
        ];
        let loaded = load_text(&text, &variables).unwrap();
        assert_eq!(loaded.config.num_partitions, 7);
        assert_eq!(loaded.unknown_variables, ["KITTIWAKE_PORT_9092_TCP"]);
        assert_eq!(
            loaded.config.given("kittiwake.durability"),
            Some("persisted")
        );

        let invalid = load_text(&text, &[("KITTIWAKE_LOG_RETENTION_MS", "-5")]).unwrap_err();
        assert_eq!(invalid.faults.len(), 1);
        assert!(
            invalid
                .to_string()
                .starts_with("environment variable KITTIWAKE_LOG_RETENTION_MS: log.retention.ms")
        );
    }

    #[test]
    fn no_two_keys_share_a_variable() {
        let mut variables: Vec<String> = keys().map(variable).collect();
        let count = variables.len();
        variables.sort_unstable();
        variables.dedup();
        assert_eq!(variables.len(), count);
    }

    #[test]
    fn a_key_set_in_two_ways_is_refused() {
        let faults = faults(&format!(
            "{MINIMAL}\"num.partitions\" = 1\nnum.partitions = 2\n"
        ));
        assert_eq!(
            faults,
            ["k.toml:6: num.partitions = \"2\": it is set already, at k.toml:5"]
        );
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("same", "same"), 0);
    }
}
