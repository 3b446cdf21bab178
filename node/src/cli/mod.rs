//! The `kittiwake` command line: one file per command.

pub mod bench;
pub mod consume;
pub mod log;
pub mod produce;
