//! The `kittiwake` command line: one file per command.

pub mod bench;
