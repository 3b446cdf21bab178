//! Hosts of their own on one machine: a network namespace per node, joined by a bridge. Needs root, `ip` and `nft`.
//!
//! ```text
//! this process  BRIDGE 10.x.y.1 ── veth ── node 0's namespace  10.x.y.10
//!                               └─ veth ── node 1's namespace  10.x.y.11 …
//! ```
//!
//! A node is cut off by rules in its own namespace that drop packets, as a broken switch would: nobody is told.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many free subnets are tried before something else must be wrong.
const TRIES: usize = 5;
/// The last byte of node 0's address; the bridge has 1.
const FIRST_HOST: u8 = 10;

/// From whom a node is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutFrom {
    /// From the other nodes: clients still reach it.
    Peers,
    /// From everybody.
    All,
}

/// The namespaces of one cluster; gone when dropped.
#[derive(Debug)]
pub(crate) struct Network {
    /// Prefix of every name; an interface name has at most 15 bytes.
    name: String,
    subnet: [u8; 2],
    hosts: u8,
}

impl Network {
    /// A bridge and `hosts` namespaces.
    pub(crate) fn new(hosts: u8) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces need root");
        }
        for attempt in 1.. {
            let network = Self {
                name: format!("kw{:08x}", rand::random::<u32>()),
                subnet: [rand::random_range(200..250), rand::random()],
                hosts,
            };
            match network.build() {
                Ok(()) => return Ok(network),
                // Another test's subnet, most likely; dropping `network` takes down what was built.
                Err(error) if attempt == TRIES => return Err(error),
                Err(_) => {}
            }
        }
        unreachable!("the loop returns by its last attempt")
    }

    fn build(&self) -> Result<()> {
        let [x, y] = self.subnet;
        let taken = output("ip", &["-o", "-4", "address"])?;
        if taken.contains(&format!(" 10.{x}.{y}.")) {
            bail!("10.{x}.{y}.0/24 is taken");
        }
        let bridge = &self.name;
        ip(&["link", "add", bridge, "type", "bridge"])?;
        let address = format!("10.{x}.{y}.1/24");
        ip(&["address", "add", &address, "dev", bridge])?;
        ip(&["link", "set", bridge, "up"])?;
        for host in 0..self.hosts {
            let (space, outer) = (self.namespace(host), format!("{bridge}v{host}"));
            ip(&["netns", "add", &space])?;
            ip(&[
                "link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &space,
            ])?;
            ip(&["link", "set", &outer, "master", bridge, "up"])?;
            let address = format!("{}/24", self.address(host));
            ip(&["-n", &space, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        // A rule that drops nothing: says now, not in the middle of a test, whether this kernel has nftables.
        self.rules(0, &[])?;
        self.heal(0)
    }

    /// A host's address.
    pub(crate) fn address(&self, host: u8) -> Ipv4Addr {
        let [x, y] = self.subnet;
        Ipv4Addr::new(10, x, y, FIRST_HOST + host)
    }

    fn namespace(&self, host: u8) -> String {
        format!("{}n{host}", self.name)
    }

    /// What to put before a command line so that it runs on a host; it execs, so the process id stays.
    pub(crate) fn enter(&self, host: u8) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace(host)]
            .map(str::to_owned)
            .into()
    }

    /// Cuts a host off until it is [healed](Self::heal).
    pub(crate) fn cut(&self, host: u8, from: CutFrom) -> Result<()> {
        let [x, y] = self.subnet;
        let gone: Vec<String> = match from {
            CutFrom::All => vec![format!("10.{x}.{y}.0/24")],
            CutFrom::Peers => (0..self.hosts)
                .filter(|&peer| peer != host)
                .map(|peer| self.address(peer).to_string())
                .collect(),
        };
        self.rules(host, &gone)
    }

    /// Drops packets from and to the addresses in `gone`, the host's own excepted: it still talks to itself.
    fn rules(&self, host: u8, gone: &[String]) -> Result<()> {
        let drops = |direction: &str| -> String {
            gone.iter()
                .map(|address| format!("ip {direction} {address} drop\n"))
                .collect()
        };
        let rules = format!(
            "table inet cut {{\n\
             chain input {{ type filter hook input priority 0;\niifname \"lo\" accept\n{} }}\n\
             chain output {{ type filter hook output priority 0;\noifname \"lo\" accept\n{} }}\n}}\n",
            drops("saddr"),
            drops("daddr")
        );
        self.nft(host, &["-f", "-"], &rules)
    }

    /// Undoes a [cut](Self::cut).
    pub(crate) fn heal(&self, host: u8) -> Result<()> {
        self.nft(host, &["delete", "table", "inet", "cut"], "")
    }

    fn nft(&self, host: u8, arguments: &[&str], input: &str) -> Result<()> {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.namespace(host), "nft"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting nft")?;
        nft.stdin
            .take()
            .context("nft without standard input")?
            .write_all(input.as_bytes())?;
        let output = nft.wait_with_output()?;
        if !output.status.success() {
            bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// The shell commands that remove everything, also after this process has been killed.
    pub(crate) fn removal(&self) -> String {
        let spaces: String = (0..self.hosts)
            .map(|host| format!("ip netns delete {}; ", self.namespace(host)))
            .collect();
        format!("{spaces}ip link delete {};", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What is already gone, or was never built, is refused, and that is all that can be refused here.
        let _ = Command::new("sh")
            .args(["-c", &self.removal()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    output("ip", arguments).map(drop)
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::{privileges, wait};

    /// Whether a connection to port 1, where nobody listens, is refused: the packets arrive.
    fn reaches(address: Ipv4Addr) -> bool {
        let address = SocketAddr::from((address, 1));
        TcpStream::connect_timeout(&address, Duration::from_millis(200))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    #[test]
    fn a_host_is_cut_off_and_healed() {
        let Some(network) = privileges::or_skip(Network::new(2)).unwrap() else {
            return;
        };
        let deadline = Duration::from_secs(5);
        let up = || reaches(network.address(0)).then_some(());
        wait::until("the bridge to carry packets", deadline, up).unwrap();
        network.cut(0, CutFrom::All).unwrap();
        assert!(!reaches(network.address(0)));
        assert!(reaches(network.address(1)));
        network.heal(0).unwrap();
        assert!(reaches(network.address(0)));
        network.cut(0, CutFrom::Peers).unwrap();
        assert!(reaches(network.address(0)), "clients still reach it");
        network.heal(0).unwrap();
    }
}
