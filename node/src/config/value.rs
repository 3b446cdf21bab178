//! Types of broker configuration values, read from text.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use kittiwake_raft::BrokerId;

use super::address::{HostPort, Listeners, Voters};
use super::kind::{WireType, parse_bool};

/// A type a key can have.
pub(super) trait Value: Sized {
    const WIRE_TYPE: WireType;
    const TYPE_NAME: &'static str;

    fn read(text: &str) -> Result<Self, String>;

    /// What a range is judged by; none where there is no number.
    fn number(&self) -> Option<i128> {
        None
    }
}

/// Reads a value and judges it by its range.
pub(super) fn check<T: Value>(text: &str, range: Option<(i128, i128)>) -> Result<T, String> {
    let value = T::read(text.trim())?;
    match (value.number(), range) {
        (Some(number), Some((min, max))) if !(min..=max).contains(&number) => Err(match max {
            i128::MAX => format!("it must be at least {min}"),
            _ => format!("it must be from {min} to {max}"),
        }),
        _ => Ok(value),
    }
}

macro_rules! integers {
    ($($type:ty: $wire:ident, $name:literal;)+) => {$(
        impl Value for $type {
            const WIRE_TYPE: WireType = WireType::$wire;
            const TYPE_NAME: &'static str = $name;

            fn read(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("it must be a whole number from {} to {}", Self::MIN, Self::MAX))
            }

            fn number(&self) -> Option<i128> {
                i128::try_from(*self).ok()
            }
        }
    )+};
}

integers! {
    i16: Int, "int";
    i32: Int, "int";
    u32: Int, "int";
    i64: Long, "long";
    u64: Long, "long";
    usize: Long, "long";
}

impl Value for bool {
    const WIRE_TYPE: WireType = WireType::Boolean;
    const TYPE_NAME: &'static str = "boolean";

    fn read(text: &str) -> Result<Self, String> {
        parse_bool(text).ok_or_else(|| "it must be true or false".into())
    }
}

impl Value for String {
    const WIRE_TYPE: WireType = WireType::String;
    const TYPE_NAME: &'static str = "string";

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            Err("it must not be empty".into())
        } else {
            Ok(text.to_owned())
        }
    }
}

/// Milliseconds.
impl Value for Duration {
    const WIRE_TYPE: WireType = WireType::Long;
    const TYPE_NAME: &'static str = "long";

    fn read(text: &str) -> Result<Self, String> {
        // As in Kafka a Java long, which also keeps sums with an instant in range.
        let ms = i64::read(text)?;
        u64::try_from(ms)
            .map(Self::from_millis)
            .map_err(|_| "it must not be negative".into())
    }

    fn number(&self) -> Option<i128> {
        i128::try_from(self.as_millis()).ok()
    }
}

/// Unset where it is empty.
impl<T: Value> Value for Option<T> {
    const WIRE_TYPE: WireType = T::WIRE_TYPE;
    const TYPE_NAME: &'static str = T::TYPE_NAME;

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            Ok(None)
        } else {
            T::read(text).map(Some)
        }
    }

    fn number(&self) -> Option<i128> {
        self.as_ref()?.number()
    }
}

impl Value for BrokerId {
    const WIRE_TYPE: WireType = WireType::Int;
    const TYPE_NAME: &'static str = "int";

    fn read(text: &str) -> Result<Self, String> {
        i32::read(text).map(Self)
    }

    fn number(&self) -> Option<i128> {
        self.0.number()
    }
}

macro_rules! parsed {
    ($($type:ty: $wire:ident, $name:literal;)+) => {$(
        impl Value for $type {
            const WIRE_TYPE: WireType = WireType::$wire;
            const TYPE_NAME: &'static str = $name;

            fn read(text: &str) -> Result<Self, String> {
                text.parse()
            }
        }
    )+};
}

parsed! {
    HostPort: String, "host:port";
    Listeners: List, "list of NAME://host:port";
    Voters: List, "list of id@host:port";
    ClusterId: String, "string";
    LogDirectory: List, "directory";
    LogFormat: String, "text or json";
}

/// Name of a cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClusterId(String);

impl Deref for ClusterId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// It is written into text files (`meta.properties`) and answered to clients.
const CLUSTER_ID_LEN_MAX: usize = 64;

impl FromStr for ClusterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > CLUSTER_ID_LEN_MAX || !text.chars().all(legal) {
            return Err(format!(
                "it must be 1 to {CLUSTER_ID_LEN_MAX} letters, digits, '.', '-' and '_'"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The data directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogDirectory(PathBuf);

impl Deref for LogDirectory {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl FromStr for LogDirectory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it must not be empty".into());
        }
        if text.contains(',') {
            return Err("this version uses one directory; run one node per disk".into());
        }
        Ok(Self(text.into()))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("it must be text or json".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive_and_explained() {
        assert_eq!(check::<i32>(" 1 ", Some((1, 5))), Ok(1));
        assert_eq!(check::<i32>("5", Some((1, 5))), Ok(5));
        assert_eq!(
            check::<i32>("6", Some((1, 5))),
            Err("it must be from 1 to 5".into())
        );
        assert_eq!(
            check::<Duration>("0", Some((1, i128::MAX))),
            Err("it must be at least 1".into())
        );
        assert!(check::<Duration>("-1", None).is_err());
        assert!(check::<i16>("40000", None).is_err());
        assert_eq!(check::<Option<i16>>("", Some((1, 5))), Ok(None));
        assert!(check::<Option<i16>>("0", Some((1, 5))).is_err());
    }

    #[test]
    fn one_data_directory_is_enough() {
        assert!(
            "a,b"
                .parse::<LogDirectory>()
                .unwrap_err()
                .contains("one directory")
        );
        assert_eq!(&*"/a b".parse::<LogDirectory>().unwrap(), Path::new("/a b"));
    }

    #[test]
    fn a_cluster_id_fits_into_a_properties_file() {
        assert!("up-1.x_Y".parse::<ClusterId>().is_ok());
        for text in ["", "a b", "a=b", "a\nb", &"x".repeat(65)] {
            assert!(text.parse::<ClusterId>().is_err(), "{text:?}");
        }
    }
}
