//! `key=value` files: `meta.properties` and the clean-shutdown marker.
//!
//! ```text
//! # meta.properties, with Kafka's keys       # .kittiwake_clean_shutdown
//! version=1                                  version=1
//! cluster.id=Zk2TqLrUQhmNkOyTq9fAAg          broker.epoch=17
//! node.id=1                                  boot.id=5c1e4a0e-...
//! directory.id=c2mO0hXyQ7uQ3iR1nN3r3A
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::checkpoint;

/// Version of both files; a larger one was written by a newer release.
pub(crate) const VERSION: i32 = 1;

/// The entries of a file, sorted by key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Entries of this version.
    pub(crate) fn new() -> Self {
        Self::default().with("version", VERSION)
    }

    /// Adds an entry.
    pub(crate) fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.0.insert(key.to_owned(), value.to_string());
        self
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The value of `key` as a number, where it is one.
    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }

    /// Reads a file; `None` where there is none. Lines without `=` and comments are passed over.
    ///
    /// # Errors
    /// read(2).
    pub(crate) fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        let entries = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
        Ok(Some(Self(entries.collect())))
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// As [`checkpoint::replace`].
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let text: String = self
            .0
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect();
        checkpoint::replace(path, text.as_bytes())
    }
}
