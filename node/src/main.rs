//! The `kittiwake` command.
fn main() {}
