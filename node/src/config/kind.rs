//! The type of a configuration value: what it may be, and how Kafka's tools are told.

use super::throttled_replicas::ThrottledReplicas;

/// What values a key takes. Values travel and are stored as text, as Kafka does it; this is the one place that reads them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// `true` or `false`, in any case.
    Bool,
    /// A 32-bit number from `min` to `max`.
    Int {
        /// The smallest value allowed.
        min: i32,
        /// The largest value allowed.
        max: i32,
    },
    /// A 64-bit number, at least `min`.
    Long {
        /// The smallest value allowed.
        min: i64,
    },
    /// A fraction from 0 to 1.
    Ratio,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// One or more of these words, separated by commas, none twice.
    SomeOf(&'static [&'static str]),
    /// `*`, or a list of replicas, see [`ThrottledReplicas`].
    Replicas,
    /// A key of Kafka's that has one possible value here. Accepting others silently would promise what is not kept.
    Only {
        /// That value.
        value: &'static str,
        /// Kafka's type of the key.
        wire_type: WireType,
        /// What to do instead.
        instead: &'static str,
    },
}

/// Type numbers of DescribeConfigs v3 and later (KIP-569).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i8)]
pub enum WireType {
    /// `BOOLEAN`
    Boolean = 1,
    /// `STRING`
    String = 2,
    /// `INT`
    Int = 3,
    /// `LONG`
    Long = 5,
    /// `DOUBLE`
    Double = 6,
    /// `LIST`
    List = 7,
}

impl WireType {
    /// The number on the wire.
    pub const fn code(self) -> i8 {
        self as i8
    }
}

impl Kind {
    /// Whether `value` may be set, else why not: a clause to follow "invalid value … for key …: ".
    pub fn validate(self, value: &str) -> Result<(), String> {
        let value = value.trim();
        let fits = match self {
            Self::Bool => parse_bool(value).is_some(),
            Self::Int { min, max } => value
                .parse()
                .is_ok_and(|number: i32| (min..=max).contains(&number)),
            Self::Long { min } => value.parse().is_ok_and(|number: i64| number >= min),
            Self::Ratio => value
                .parse()
                .is_ok_and(|number: f64| (0.0..=1.0).contains(&number)),
            Self::OneOf(words) => words.contains(&value),
            Self::SomeOf(words) => {
                // More words than there are repeat one: looked at first, so that the rest is cheap.
                let chosen: Vec<&str> = list(value).take(words.len() + 1).collect();
                let repeats = || (1..chosen.len()).any(|at| chosen[..at].contains(&chosen[at]));
                (1..=words.len()).contains(&chosen.len())
                    && chosen.iter().all(|word| words.contains(word))
                    && !repeats()
            }
            Self::Replicas => ThrottledReplicas::parse(value).is_some(),
            Self::Only { value: only, .. } => value.eq_ignore_ascii_case(only),
        };
        if fits { Ok(()) } else { Err(self.expected()) }
    }

    fn expected(self) -> String {
        match self {
            Self::Bool => "it must be true or false".into(),
            Self::Int { min, max: i32::MAX } => {
                format!("it must be a 32-bit number, at least {min}")
            }
            Self::Int { min, max } => format!("it must be a number from {min} to {max}"),
            Self::Long { min } => format!("it must be a 64-bit number, at least {min}"),
            Self::Ratio => "it must be a number from 0 to 1".into(),
            Self::OneOf(words) => format!("it must be one of {}", words.join(", ")),
            Self::SomeOf(words) => format!(
                "it must be one or more of {}, separated by commas",
                words.join(", ")
            ),
            Self::Replicas => {
                "it must be * or a list of PARTITION:BROKER,PARTITION:BROKER,…".into()
            }
            Self::Only { value, instead, .. } => format!("it can only be {value}: {instead}"),
        }
    }

    /// Its type, as DescribeConfigs reports it.
    pub const fn wire_type(self) -> WireType {
        match self {
            Self::Bool => WireType::Boolean,
            Self::Int { .. } => WireType::Int,
            Self::Long { .. } => WireType::Long,
            Self::Ratio => WireType::Double,
            Self::OneOf(_) => WireType::String,
            Self::SomeOf(_) | Self::Replicas => WireType::List,
            Self::Only { wire_type, .. } => wire_type,
        }
    }

    /// Whether it is a list that words can be added to and taken out of (KIP-339), and `word` may be one of them.
    pub fn takes_word(self, word: &str) -> bool {
        match self {
            Self::SomeOf(words) => words.contains(&word),
            Self::Replicas => ThrottledReplicas::parse(word).is_some(),
            _ => false,
        }
    }
}

/// Reads a boolean as Kafka does.
pub fn parse_bool(value: &str) -> Option<bool> {
    match value.trim() {
        value if value.eq_ignore_ascii_case("true") => Some(true),
        value if value.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// The words of a comma-separated list.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(kind: Kind, values: &[&str]) {
        for value in values {
            assert_eq!(kind.validate(value), Ok(()), "{kind:?} {value:?}");
        }
    }

    fn refuses(kind: Kind, values: &[&str]) {
        for value in values {
            assert!(kind.validate(value).is_err(), "{kind:?} {value:?}");
        }
    }

    #[test]
    fn values_are_judged_by_their_kind() {
        accepts(Kind::Bool, &["true", "FALSE", " true "]);
        refuses(Kind::Bool, &["", "yes", "1"]);
        let int = Kind::Int { min: 1, max: 10 };
        accepts(int, &["1", "10", " 7 "]);
        refuses(int, &["0", "11", "1.0", "", "99999999999"]);
        accepts(Kind::Long { min: -1 }, &["-1", "9223372036854775807"]);
        refuses(
            Kind::Long { min: -1 },
            &["-2", "9223372036854775808", "1e3"],
        );
        accepts(Kind::Ratio, &["0", "1", "0.5"]);
        refuses(Kind::Ratio, &["-0.1", "1.1", "NaN", "half"]);
        let policies = Kind::SomeOf(&["delete", "compact"]);
        accepts(policies, &["delete", "compact,delete", "delete, compact"]);
        refuses(policies, &["", ",", "delete,delete", "keep", "Delete"]);
        accepts(Kind::Replicas, &["", "*", "0:1", "0:1,1:2"]);
        refuses(Kind::Replicas, &["0", "0:1,*", "all"]);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let only = Kind::Only {
            value: "producer",
            wire_type: WireType::String,
            instead: "set it on the producer",
        };
        assert_eq!(only.validate("producer"), Ok(()));
        assert_eq!(
            only.validate("zstd"),
            Err("it can only be producer: set it on the producer".into())
        );
    }
}
