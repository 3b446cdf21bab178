//! Free TCP ports that stay free across a restart of the node.
//!
//! A port from `bind(0)` lies in the range the kernel also hands to outgoing connections, so while a killed node is down
//! a client's own reconnect may take it. These come from below that range and are given out once per process.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use anyhow::{Result, bail};

/// Below Linux' default `ip_local_port_range` (32768–60999) and above the well-known ports.
const RANGE: std::ops::Range<u16> = 10_000..32_000;
const TRIES: usize = 1_000;

static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port on 127.0.0.1 on which nobody listens and which this process has not been given before.
///
/// Another process may still take it before the node binds it; [`Cluster`](crate::Cluster) then starts over with others.
pub(crate) fn free() -> Result<u16> {
    let mut taken = TAKEN
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let taken = taken.get_or_insert_with(HashSet::new);
    for _ in 0..TRIES {
        let port = rand::random_range(RANGE);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && taken.insert(port) {
            return Ok(port);
        }
    }
    bail!("no free port among {TRIES} tried in {RANGE:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_can_be_bound() {
        let (one, other) = (free().unwrap(), free().unwrap());
        assert_ne!(one, other);
        TcpListener::bind((Ipv4Addr::LOCALHOST, one)).unwrap();
    }
}
