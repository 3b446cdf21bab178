//! What only root can do, and what a test does without it.

use anyhow::{Error, Result};

/// Judges an attempt that needs root: its result, or `None` where this user may not make it, with a line that says so
/// (`skipped: …`, which `.ci/run` counts).
///
/// # Errors
/// The attempt's own, as root with `CI` set: what can be tested there must be.
pub fn or_skip<T>(attempt: Result<T>) -> Result<Option<T>> {
    let root = nix::unistd::geteuid().is_root();
    match attempt {
        Ok(made) => Ok(Some(made)),
        Err(error) if root && std::env::var_os("CI").is_some() => {
            Err(Error::context(error, "root in CI must be able to do this"))
        }
        Err(error) => {
            println!("skipped: {error:#}");
            Ok(None)
        }
    }
}
