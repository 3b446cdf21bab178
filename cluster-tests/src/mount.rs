//! File systems of a test's own: to be filled, or to lose power. Needs root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A mounted file system; gone when dropped.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
    /// Mounts it; the mount point is added.
    arguments: Vec<String>,
    directory: tempfile::TempDir,
}

impl Mount {
    /// A tmpfs of so many MiB.
    pub fn tmpfs(size_mib: u64) -> Result<Self> {
        let size = format!("size={size_mib}m");
        Self::at(|_| {
            Ok(["-t", "tmpfs", "-o", &size, "none"]
                .map(str::to_owned)
                .to_vec())
        })
    }

    /// ext4 of so many MiB in a file, through a loop device.
    pub fn ext4(size_mib: u64) -> Result<Self> {
        Self::at(|directory| {
            let image = directory.join("image");
            File::create(&image)?.set_len(size_mib << 20)?;
            run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
            let image = image.to_string_lossy();
            Ok(["-t", "ext4", "-o", "loop", &image]
                .map(str::to_owned)
                .to_vec())
        })
    }

    /// The same where [`lose_power`](Self::lose_power) works.
    pub fn losing_power(size_mib: u64) -> Result<Self> {
        run(Command::new("xfs_io").arg("-V"))?;
        Self::ext4(size_mib)
    }

    fn at(arguments: impl FnOnce(&Path) -> Result<Vec<String>>) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("kittiwake-mount-")
            .tempdir()?;
        let point = directory.path().join("mount");
        std::fs::create_dir(&point)?;
        let arguments = arguments(directory.path())?;
        mount(&arguments, &point)?;
        Ok(Self {
            point,
            arguments,
            directory,
        })
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Makes everything durable that has been written so far.
    pub fn sync(&self) -> Result<()> {
        run(Command::new("sync").arg("--file-system").arg(&self.point))
    }

    /// Loses what was not made durable, and mounts the rest again. No file may be open. Needs ext4.
    pub fn lose_power(&self) -> Result<()> {
        let control = self.point.join("not-flushed");
        std::fs::write(&control, "x")?;
        // EXT4_IOC_SHUTDOWN without flushing even the journal: nothing reaches the device any more.
        run(Command::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(&self.point))?;
        run(Command::new("umount").arg(&self.point))?;
        mount(&self.arguments, &self.point)?;
        if control.exists() {
            bail!("{} survived: nothing was lost", control.display());
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.point)) {
            eprintln!(
                "{} stays mounted in {}: {error}",
                self.point.display(),
                self.directory.path().display()
            );
        }
    }
}

fn mount(arguments: &[String], point: &Path) -> Result<()> {
    run(Command::new("mount").args(arguments).arg(point))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
