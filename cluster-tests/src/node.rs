//! One node: a real `kittiwake serve` process with its own directory, ports and log file.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::metrics::Metrics;
use crate::{binary, http, ports, wait};

/// Long enough for a debug build on a loaded two-core machine; a node that needs longer has failed.
pub const START_DEADLINE: Duration = Duration::from_secs(30);
/// A planned stop flushes every log.
pub const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// One node of a [`Cluster`](crate::Cluster). It outlives its processes: it can be killed and started again.
#[derive(Debug)]
pub struct Node {
    id: u32,
    directory: PathBuf,
    ports: Ports,
    launch: Launch,
    process: Option<Child>,
    paused: bool,
}

/// How a node's process is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Launch {
    /// The binary; the one of this build if `None`.
    pub(crate) binary: Option<PathBuf>,
    /// What to put before its command line: `ip netns exec …`.
    pub(crate) prefix: Vec<String>,
}

/// Where a node listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) host: Ipv4Addr,
    pub(crate) kafka: u16,
    pub(crate) replication: u16,
    pub(crate) grpc: u16,
    pub(crate) http: u16,
}

impl Ports {
    /// Ports on `host` that are free on this machine.
    pub(crate) fn pick(host: Ipv4Addr) -> Result<Self> {
        Ok(Self {
            host,
            kafka: ports::free()?,
            replication: ports::free()?,
            grpc: ports::free()?,
            http: ports::free()?,
        })
    }
}

impl Node {
    pub(crate) fn new(id: u32, directory: PathBuf, ports: Ports, launch: Launch) -> Self {
        Self {
            id,
            directory,
            ports,
            launch,
            process: None,
            paused: false,
        }
    }

    /// The node id in the configuration.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where Kafka clients connect.
    pub fn kafka(&self) -> SocketAddr {
        (self.ports.host, self.ports.kafka).into()
    }

    /// Where other nodes fetch from.
    pub fn replication(&self) -> SocketAddr {
        (self.ports.host, self.ports.replication).into()
    }

    /// Where the gRPC admin service listens.
    pub fn grpc(&self) -> SocketAddr {
        (self.ports.host, self.ports.grpc).into()
    }

    /// Where `/metrics`, `/livez` and `/readyz` are.
    pub fn http(&self) -> SocketAddr {
        (self.ports.host, self.ports.http).into()
    }

    /// The data directory (`log.dirs`).
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory of one partition's replica.
    pub fn partition_directory(&self, topic: &str, partition: i32) -> PathBuf {
        self.data_directory().join(format!("{topic}-{partition}"))
    }

    /// The configuration file; a test may rewrite it while the node is down.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("kittiwake.toml")
    }

    /// Sets a key (Kafka's name) in the configuration of a node that does not run.
    pub fn configure(&mut self, key: &str, value: impl Into<toml::Value>) -> Result<()> {
        if self.process.is_some() {
            bail!("node {} runs", self.id);
        }
        let mut table: toml::Table = std::fs::read_to_string(self.config_file())?.parse()?;
        table.insert(key.to_owned(), value.into());
        Ok(std::fs::write(
            self.config_file(),
            toml::to_string(&table)?,
        )?)
    }

    /// Everything the node's processes have written to standard output and error, across restarts.
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("node.log")
    }

    /// The process id, while a process runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Starts a process and waits until it is ready; returns how long that took, exec to the first 200 of `/readyz`.
    pub fn start(&mut self) -> Result<Duration> {
        let began = self.spawn()?;
        self.wait_ready(began)?;
        Ok(began.elapsed())
    }

    /// Starts a process without waiting for it; the instant is that of the exec.
    pub fn spawn(&mut self) -> Result<Instant> {
        self.spawn_under(&[])
    }

    /// Starts a process as the child of `wrapper` (`["strace", "-f"]`), which must end when it does.
    pub fn spawn_under(&mut self, wrapper: &[&str]) -> Result<Instant> {
        if self.process.is_some() {
            bail!("node {} already runs", self.id);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        // The process dies with this one, however this one ends: setpriv sets PR_SET_PDEATHSIG and then execs, so the pid stays.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(&self.launch.prefix)
            .args(wrapper)
            .arg(match &self.launch.binary {
                Some(binary) => binary,
                None => binary::kittiwake()?,
            });
        command.arg("serve").arg("--config").arg(self.config_file());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir(&self.directory)
            .process_group(0);
        // The tests' own variables are no configuration keys, and the caller's environment is none of the node's.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KITTIWAKE_") {
                command.env_remove(name);
            }
        }
        let began = Instant::now();
        self.process = Some(spawn_from_lasting_thread(command)?);
        Ok(began)
    }

    /// Waits until `/readyz` answers 200, at most [`START_DEADLINE`] after `began`, failing at once if the process ends.
    pub fn wait_ready(&mut self, began: Instant) -> Result<()> {
        let deadline = START_DEADLINE.saturating_sub(began.elapsed());
        let address = self.http();
        let ended = wait::until(&format!("node {} to be ready", self.id), deadline, || {
            if let Some(status) = self.exited() {
                return Some(Some(status));
            }
            http::get(address, "/readyz")
                .is_ok_and(|response| response.status == 200)
                .then_some(None)
        })
        .with_context(|| self.log_tail())?;
        match ended {
            None => Ok(()),
            Some(status) => bail!(
                "node {} ended with {status} before it was ready\n{}",
                self.id,
                self.log_tail()
            ),
        }
    }

    /// The exit status, if the process has ended by itself.
    fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().ok()??;
        self.process = None;
        Some(status)
    }

    /// Waits for the process to end by itself.
    pub fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait::until(&format!("node {} to end", self.id), deadline, || {
            self.exited()
        })
    }

    /// `kill -9`: the process is gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.send_kill()?;
        self.wait_killed()
    }

    /// SIGKILL.
    pub(crate) fn send_kill(&self) -> Result<()> {
        let process = self.process.as_ref().context("no process to kill")?;
        Ok(killpg(group(process)?, Signal::SIGKILL)?)
    }

    /// Waits for the end of a process that was sent SIGKILL.
    pub(crate) fn wait_killed(&mut self) -> Result<()> {
        let mut process = self.process.take().context("no process was killed")?;
        let status = process.wait()?;
        self.paused = false;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!(
                "node {} had already ended with {status}\n{}",
                self.id,
                self.log_tail()
            );
        }
        Ok(())
    }

    /// Empties the data directory of a node that does not run, as if it came back with a new disk.
    pub fn wipe(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("node {} runs", self.id);
        }
        std::fs::remove_dir_all(self.data_directory())
            .with_context(|| format!("emptying node {}", self.id))
    }

    /// Makes a node that does not run believe that its machine has been started anew since: what was not flushed is gone.
    pub fn reboot(&self) -> Result<()> {
        const BOOT_ID: &str = ".kittiwake_boot_id";
        if self.process.is_some() {
            bail!("node {} runs", self.id);
        }
        let file = self.data_directory().join(BOOT_ID);
        std::fs::metadata(&file).with_context(|| file.display().to_string())?;
        Ok(std::fs::write(&file, "an earlier boot\n")?)
    }

    /// SIGTERM, then waits for the planned stop; anything but exit status 0 is an error.
    pub fn terminate(&mut self) -> Result<()> {
        self.ask_to_stop()?;
        self.wait_stopped()
    }

    /// SIGTERM; [`wait_stopped`](Self::wait_stopped) waits for what follows.
    pub fn ask_to_stop(&self) -> Result<()> {
        let process = self.process.as_ref().context("no process to stop")?;
        Ok(killpg(group(process)?, Signal::SIGTERM)?)
    }

    /// Waits for the end of a planned stop; anything but exit status 0 is an error.
    pub fn wait_stopped(&mut self) -> Result<()> {
        let status = self
            .wait_exit(STOP_DEADLINE)
            .with_context(|| self.log_tail())?;
        if !status.success() {
            bail!(
                "node {} stopped with {status}\n{}",
                self.id,
                self.log_tail()
            );
        }
        Ok(())
    }

    /// SIGSTOP: the node hangs, its connections stay open. Returns when every thread of it has stopped: the signal alone
    /// leaves those that run elsewhere time to answer what they have just read.
    pub fn pause(&mut self) -> Result<()> {
        let process = self.process.as_ref().context("no process to pause")?;
        kill(group(process)?, Signal::SIGSTOP)?;
        self.paused = true;
        let pid = process.id();
        wait::until("a node's threads to stop", STOP_DEADLINE, || {
            threads_have_stopped(pid).ok()?.then_some(())
        })
    }

    /// SIGCONT after [`pause`](Self::pause).
    pub fn resume(&mut self) -> Result<()> {
        kill(
            group(self.process.as_ref().context("no process to resume")?)?,
            Signal::SIGCONT,
        )?;
        self.paused = false;
        Ok(())
    }

    /// Whether the node is stopped by [`pause`](Self::pause).
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether a process was started and neither has been ended by the harness nor hangs.
    pub fn is_running(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    /// `kittiwake cluster status`, asked of this node, as its `--output json` prints it.
    pub fn status(&self) -> Result<serde_json::Value> {
        let admin = self.grpc().to_string();
        let arguments = ["cluster", "status", "--admin", &admin];
        kittiwake_json(self.launch.binary.as_deref(), &arguments)
    }

    /// What `/metrics` says now.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&http::get(self.http(), "/metrics")?.body))
    }

    /// Resident memory of the process in bytes (`VmRSS`).
    pub fn resident_bytes(&self) -> Result<u64> {
        let pid = self.pid().context("no process")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("a process without VmRSS")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("VmRSS without a number")?
            .parse()?;
        Ok(kib * 1024)
    }

    /// CPU time, user and system, of all threads since the process started; good to 10 ms.
    pub fn cpu_time(&self) -> Result<Duration> {
        /// `USER_HZ` is 100 on every architecture that Linux still supports (proc_pid_stat(5)).
        const TICK: Duration = Duration::from_millis(10);
        let pid = self.pid().context("no process")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The command's name, in parentheses, may hold spaces; utime and stime are the 14th and 15th fields.
        let (_, fields) = stat.rsplit_once(')').context("a process without a name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |field: usize| -> Result<u32> {
            Ok(fields.get(field).context("a short stat file")?.parse()?)
        };
        Ok(TICK * (ticks(11)? + ticks(12)?))
    }

    /// The log's lines at level ERROR, and panics.
    pub fn error_lines(&self) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| is_error(line))
            .map(str::to_owned)
            .collect()
    }

    /// The end of the log, for error messages.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 40;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
        format!("--- the end of node {}'s log ---\n{tail}\n---", self.id)
    }

    /// Ends whatever runs, without asking; part of every clean-up.
    pub(crate) fn destroy(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Errors mean that it is gone already, which is what is wanted.
            let _ = group(&process).and_then(|group| Ok(killpg(group, Signal::SIGKILL)?));
            let _ = process.wait();
        }
    }
}

fn is_error(line: &str) -> bool {
    line.contains(" ERROR ")
        || line.starts_with("ERROR ")
        || line.contains("\"level\":\"ERROR\"")
        || line.contains("panicked at")
}

fn group(process: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(process.id())?))
}

/// Whether every thread is in the state `T` (proc_pid_stat(5)).
fn threads_have_stopped(pid: u32) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("a thread without a name")?;
        if fields.split_whitespace().next() != Some("T") {
            return Ok(false);
        }
    }
    Ok(true)
}

type SpawnRequest = (Command, Sender<std::io::Result<Child>>);

/// Spawns from a thread that lives as long as this process: the parent-death signal is tied to the *thread* that forked
/// (prctl(2)), and a test's thread ends with the test.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<SpawnRequest>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = channel::<SpawnRequest>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // The asker waits for the reply, so it cannot be gone.
                let _ = reply.send(command.spawn());
            }
        });
        requests
    });
    let (reply, answer) = channel();
    spawner
        .clone()
        .send((command, reply))
        .context("the spawning thread ended")?;
    answer
        .recv()
        .context("the spawning thread ended")?
        .context("starting the node (setpriv, of util-linux, must be installed)")
}

/// Runs `kittiwake ARGUMENTS` to its end and returns its output; the command's own exit status is the caller's to judge.
pub fn run_kittiwake(arguments: &[&str]) -> Result<Output> {
    run(None, arguments)
}

/// The same with a binary of the caller's choice; `None` is the one of this build.
pub(crate) fn run(binary: Option<&Path>, arguments: &[&str]) -> Result<Output> {
    let binary = match binary {
        Some(binary) => binary,
        None => binary::kittiwake()?,
    };
    Ok(Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?)
}

/// Runs `kittiwake ARGUMENTS --output json`, which must succeed, and returns what it printed.
pub(crate) fn kittiwake_json(
    binary: Option<&Path>,
    arguments: &[&str],
) -> Result<serde_json::Value> {
    let output = run(binary, &[arguments, &["--output", "json"]].concat())?;
    if !output.status.success() {
        bail!(
            "kittiwake {}: {}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("kittiwake {} printed no JSON", arguments.join(" ")))
}

/// Creates `path` with `text`, refusing to overwrite.
pub(crate) fn write_new(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    File::create_new(path)?.write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_lines_are_found_in_text_and_json() {
        assert!(is_error(
            "2026-01-01T00:00:00Z ERROR kittiwake: disk on fire"
        ));
        assert!(is_error(r#"{"level":"ERROR","fields":{}}"#));
        assert!(is_error("thread 'main' panicked at node/src/main.rs:1:1:"));
        assert!(!is_error(
            "2026-01-01T00:00:00Z  WARN kittiwake: NO_ERROR_HERE"
        ));
    }
}
