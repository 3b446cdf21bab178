//! `kittiwake serve`: one node.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::process::{self, Pid, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::Bound;
use crate::config::address::DEFAULT_LISTENER_NAME;
use crate::config::value::LogFormat;
use crate::config::{BrokerConfig, Loaded, load_file, markdown};

/// Exit status of a node that a second signal ended before it had stopped.
const EXIT_INTERRUPTED: i32 = 130;

/// Runs one node.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Configuration file (TOML, Kafka's property names)
    #[arg(
        long,
        short,
        value_name = "FILE",
        required_unless_present = "print_config_docs"
    )]
    config: Option<PathBuf>,
    /// Only check the configuration: report every fault and start nothing
    #[arg(long)]
    check: bool,
    /// Write where the node listens to this file, as JSON, once it is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Print the documentation of every configuration key, as Markdown
    #[arg(long)]
    print_config_docs: bool,
    /// Stop when the process that started this one, with this id, ends
    #[arg(long, value_name = "PID", hide = true)]
    stop_with_parent: Option<i32>,
}

/// Runs the command.
///
/// # Errors
/// The configuration cannot be used, or the node cannot start.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.print_config_docs {
        print!("{}", markdown());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(parent) = args.stop_with_parent {
        stop_with_parent(parent)?;
    }
    let path = args.config.as_deref().context("--config FILE is needed")?;
    let loaded = load_file(path).with_context(|| format!("{} cannot be used", path.display()));
    let Loaded {
        config,
        unknown_variables,
    } = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            // One fault a line, below the sentence.
            eprintln!("kittiwake: {error}:\n{}", error.root_cause());
            return Ok(ExitCode::FAILURE);
        }
    };
    if args.check {
        println!("{}: the configuration is valid", path.display());
        for name in unknown_variables {
            println!("environment variable {name} names no key and is ignored");
        }
        return Ok(ExitCode::SUCCESS);
    }
    log_to_stderr(&config)?;
    for name in unknown_variables {
        warn!(
            variable = name,
            "an environment variable names no configuration key and is ignored"
        );
    }
    raise_file_limit();
    let workers = config.kittiwake_worker_threads;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().thread_name("kittiwake");
    if workers > 0 {
        runtime.worker_threads(workers);
    }
    runtime
        .build()?
        .block_on(serve(config, args.ready_file.clone()))
}

/// A node must not outlive `kittiwake up`. Set by the node itself, since only the parent's *main*
/// thread started it; see prctl(2), PR_SET_PDEATHSIG.
fn stop_with_parent(parent: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(process::Signal::TERM))?;
    // The parent may have ended before the signal was asked for.
    if getppid() != Pid::from_raw(parent) {
        bail!("the process that started this node has ended");
    }
    Ok(())
}

/// Sealed segments, connections and maps are files; the usual soft limit of 1,024 is for programs
/// that use select(2).
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => info!(limit, "open files"),
        Err(error) => warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// RUST_LOG goes before `log.level`.
fn log_to_stderr(config: &BrokerConfig) -> anyhow::Result<()> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) => EnvFilter::try_new(directives).context("RUST_LOG cannot be read")?,
        Err(_) => EnvFilter::try_new(&config.log_level).context("log.level cannot be read")?,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(false);
    let installed = match config.log_format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("logging cannot be set up: {error}"))
}

/// Runs the node until a signal, or until it cannot go on.
async fn serve(config: BrokerConfig, ready_file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    let deadline = config.kittiwake_shutdown_timeout_ms;
    tokio::spawn(stop_on_signals(Signals::new()?, shutdown.clone(), deadline));
    crate::run(config, shutdown, move |bound| {
        announce(bound, ready_file.as_deref())
    })
    .await?;
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The two signals of a planned stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The first signal is a planned stop; a second one, or the deadline, ends the process as it is.
async fn stop_on_signals(mut signals: Signals, shutdown: CancellationToken, deadline: Duration) {
    signals.next().await;
    info!("stopping; a second signal ends the process at once");
    shutdown.cancel();
    let twice = tokio::time::timeout(deadline, signals.next()).await;
    match twice {
        Ok(()) => error!("ended by a second signal; the next start recovers the logs"),
        Err(_) => error!(
            ?deadline,
            "the stop takes too long; the next start recovers the logs"
        ),
    }
    std::process::exit(EXIT_INTERRUPTED);
}

/// Says where the node is, to whoever started it.
fn announce(bound: &Bound, ready_file: Option<&Path>) {
    let mut line = String::from("ready");
    for (name, address) in addresses(bound) {
        // Writing to a string does not fail.
        let _ = write!(line, " {name}={address}");
    }
    if let Some(path) = ready_file
        && let Err(error) = write_ready_file(path, bound)
    {
        warn!(%error, path = %path.display(), "the ready file cannot be written");
    }
    // Whoever started the node may not listen. Who waits for the line finds the file.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Complete or not there: written beside its place and renamed.
fn write_ready_file(path: &Path, bound: &Bound) -> anyhow::Result<()> {
    let addresses: BTreeMap<String, String> = addresses(bound).collect();
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    std::fs::write(&unfinished, serde_json::to_vec_pretty(&addresses)?)?;
    std::fs::rename(&unfinished, path)?;
    Ok(())
}

/// The PLAINTEXT listener is `kafka`, further ones `kafka.NAME`.
fn addresses(bound: &Bound) -> impl Iterator<Item = (String, String)> {
    let kafka = bound
        .kafka
        .iter()
        .map(|(name, address)| match name.as_str() {
            DEFAULT_LISTENER_NAME => ("kafka".to_owned(), address.to_string()),
            _ => (format!("kafka.{name}"), address.to_string()),
        });
    let others = [("grpc", bound.grpc), ("http", bound.http)];
    kafka.chain(
        others
            .into_iter()
            .map(|(name, address)| (name.to_owned(), address.to_string())),
    )
}
