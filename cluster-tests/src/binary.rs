//! Where the `kittiwake` binary under test comes from.
//!
//! `KITTIWAKE_BIN` names it outright. Otherwise it is built once per test process by the cargo that runs the tests, in the
//! profile and target directory of the test executable itself, so that a test never drives a stale binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// The path of an up-to-date `kittiwake` binary.
pub(crate) fn kittiwake() -> Result<&'static Path> {
    let found = BINARY.get_or_init(|| locate().map_err(|error| format!("{error:#}")));
    match found {
        Ok(path) => Ok(path),
        Err(error) => bail!("no kittiwake binary to test: {error}"),
    }
}

fn locate() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KITTIWAKE_BIN") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!(
                "KITTIWAKE_BIN names {}, which is not a file",
                path.display()
            );
        }
        return Ok(path);
    }
    // <target>/<profile>/deps/<test>-<hash> for tests, <target>/<profile>/<name> for this package's programs.
    let executable = std::env::current_exe().context("the path of the running executable")?;
    let mut profile = executable
        .parent()
        .context("the running executable has no directory")?;
    if profile.ends_with("deps") {
        profile = profile.parent().context("deps/ has no parent")?;
    }
    build(profile)?;
    let binary = profile.join("kittiwake");
    if !binary.is_file() {
        bail!("cargo built no {}; set KITTIWAKE_BIN", binary.display());
    }
    Ok(binary)
}

fn build(profile: &Path) -> Result<()> {
    let target = profile
        .parent()
        .context("the profile directory has no parent")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--workspace", "--bin", "kittiwake"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target)
        .stdin(Stdio::null());
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let output = command.output().context("starting cargo")?;
    if !output.status.success() {
        bail!(
            "cargo build failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
