//! Whether a network interface can gather a packet from scattered pages: what decides if `sendfile`
//! costs a copy by the CPU.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use serde::Serialize;

use super::kernel::ethtool_flag;

/// Commands of `linux/ethtool.h`.
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GSG: u32 = 0x18;
const ETHTOOL_GTSO: u32 = 0x1e;

/// What an interface's driver says of itself; none where it does not answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Interface {
    /// Its name.
    pub(super) name: String,
    /// `ethtool -k`: scatter-gather.
    pub(super) scatter_gather: Option<bool>,
    /// `ethtool -k`: tx-checksumming. Without it the CPU reads every byte anyway, and the kernel
    /// does not send from scattered pages.
    pub(super) tx_checksum: Option<bool>,
    /// `ethtool -k`: tcp-segmentation-offload.
    pub(super) segmentation: Option<bool>,
}

impl Interface {
    /// Whether pages of a file go to the device without a copy by the CPU.
    pub(super) fn gathers(&self) -> Option<bool> {
        Some(self.scatter_gather? && self.tx_checksum?)
    }

    /// One sentence for the report.
    pub(super) fn describe(&self) -> String {
        let say = |flag: Option<bool>| match flag {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        let verdict = match self.gathers() {
            Some(true) => "sendfile costs no copy by the CPU",
            Some(false) => "sendfile costs one copy by the CPU",
            None => "its driver does not say whether sendfile costs a copy by the CPU",
        };
        format!(
            "{}: scatter-gather {}, tx-checksumming {}, tcp-segmentation-offload {}: {verdict}",
            self.name,
            say(self.scatter_gather),
            say(self.tx_checksum),
            say(self.segmentation)
        )
    }
}

/// Loopback and the interface of the default route.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let names = std::iter::once("lo").chain(default_interface(&routes));
    let ask = |name: &str, command| ethtool_flag(socket.as_fd(), name, command).ok();
    Ok(names
        .map(|name| Interface {
            name: name.to_owned(),
            scatter_gather: ask(name, ETHTOOL_GSG),
            tx_checksum: ask(name, ETHTOOL_GTXCSUM),
            segmentation: ask(name, ETHTOOL_GTSO),
        })
        .collect())
}

/// The first interface of `/proc/net/route` whose destination and mask are zero.
fn default_interface(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        let is_default = fields.next()? == "00000000" && fields.nth(5)? == "00000000";
        is_default.then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_the_one_without_destination_and_mask() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth1\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(default_interface(routes), Some("eth0"));
        assert_eq!(default_interface(""), None);
        assert_eq!(default_interface("Iface\nshort line\n"), None);
    }

    #[test]
    fn an_interface_that_says_nothing_is_not_guessed_at() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(ethtool_flag(socket.as_fd(), "no-such-device", ETHTOOL_GSG).is_err());
        assert!(ethtool_flag(socket.as_fd(), "a-name-that-is-far-too-long", ETHTOOL_GSG).is_err());
    }
}
