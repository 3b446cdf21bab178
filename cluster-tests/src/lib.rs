//! Drives real Kittiwake processes.
#![forbid(unsafe_code)]
