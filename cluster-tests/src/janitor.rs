//! Clean-up that also happens when this process is killed.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Waits for the end of its standard input, which is the end of the process that started it, however that ended. The
/// nodes die at the same moment (their parent-death signal); until the last one has, a directory may fill up again.
const SCRIPT: &str = r#"trap '' HUP INT TERM
cat > /dev/null
for _ in 1 2 3 4 5; do rm -rf -- "$1" && break; sleep 0.2; done
eval "$2""#;

/// A process that removes a directory, and runs some shell commands, once this process is gone or the janitor dropped.
#[derive(Debug)]
pub(crate) struct Janitor {
    process: Child,
}

impl Janitor {
    /// Hires one for `directory`; `commands` are run after it is removed.
    pub(crate) fn of(directory: &Path, commands: &str) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let process = Command::new("sh")
            .args(["-c", SCRIPT, "janitor"])
            .arg(directory)
            .arg(commands)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The terminal's Ctrl-C is not for it.
            .process_group(0)
            .spawn()
            .context("starting sh")?;
        Ok(Self { process })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // It cannot be told anything any more; without the wait it would stay as a zombie.
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, mark) = (parent.path().join("nodes"), parent.path().join("mark"));
        std::fs::create_dir_all(directory.join("deep")).unwrap();
        let janitor = Janitor::of(&directory, &format!("echo > '{}'", mark.display())).unwrap();
        assert!(directory.exists() && !mark.exists());
        drop(janitor);
        assert!(!directory.exists() && mark.exists());
    }
}
