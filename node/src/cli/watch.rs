//! `--watch`: a command again and again, until Ctrl-C.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::sleep;

/// `--watch [SECONDS]`
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Watch {
    /// Show it again every SECONDS (2), until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

impl Watch {
    /// Runs `show` once, or until it fails. A terminal is cleared before each time.
    ///
    /// # Errors
    /// Those of `show`.
    pub async fn repeat(
        self,
        mut show: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(seconds) = self.watch else {
            return show().await;
        };
        loop {
            if io::stdout().is_terminal() {
                print!("\u{1b}[H\u{1b}[2J");
                io::stdout().flush()?;
            }
            show().await?;
            sleep(Duration::from_secs(seconds)).await;
        }
    }
}
