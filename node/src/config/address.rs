//! Addresses as they are written in configuration: listeners, `host:port`, voters.

use std::fmt;
use std::str::FromStr;

use kittiwake_raft::BrokerId;

/// Name of a listener that is written without one.
pub const DEFAULT_LISTENER_NAME: &str = "PLAINTEXT";

/// Name of the listener that the other nodes fetch from.
pub const REPLICATION_LISTENER: &str = "REPLICATION";

/// Name of the gRPC listener among a node's registered endpoints.
pub const GRPC_LISTENER: &str = "GRPC";

/// Names that no listener of Kafka clients may have: clients would be told of the addresses between nodes.
pub const RESERVED_LISTENER_NAMES: [&str; 2] = [REPLICATION_LISTENER, GRPC_LISTENER];

/// A host and a port. An empty host is every interface; port 0, to listen on, is any free one.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HostPort {
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// Whether it stands for every interface of the machine, which is nothing a client can connect to.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host.as_str(), "" | "0.0.0.0" | "::")
    }

    /// What to bind: the wildcard address where no host is given.
    pub fn bind_address(&self) -> (&str, u16) {
        (
            if self.host.is_empty() {
                "0.0.0.0"
            } else {
                &self.host
            },
            self.port,
        )
    }

    /// What others connect to, if nothing else is advertised: the port that was bound, and `hostname` in place of a
    /// wildcard.
    pub fn reachable_at(&self, bound_port: u16, hostname: &str) -> Self {
        let host = if self.is_wildcard() {
            hostname
        } else {
            &self.host
        };
        Self {
            host: host.to_owned(),
            port: bound_port,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or("it must be host:port")?;
        let port = port
            .parse()
            .map_err(|_| format!("{port:?} is not a port (0 to 65535)"))?;
        let host = match host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            Some(v6) => return Err(format!("{v6:?} is not an IPv6 address")),
            None if host.contains(':') => {
                return Err("an IPv6 address is written in brackets: [::1]:9092".into());
            }
            None => host,
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if !host.chars().all(legal) {
            return Err(format!("{host:?} is not a host name or address"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

/// A named address of Kafka clients: `PLAINTEXT://host:port`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedAddress {
    /// The listener's name.
    pub name: String,
    /// Where it is.
    pub address: HostPort,
}

impl fmt::Display for NamedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.name, self.address)
    }
}

impl FromStr for NamedAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text
            .split_once("://")
            .unwrap_or((DEFAULT_LISTENER_NAME, text));
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || !name.chars().all(legal) {
            return Err(format!("{name:?} is not a listener name"));
        }
        let name = name.to_ascii_uppercase();
        if matches!(name.as_str(), "SSL" | "SASL_PLAINTEXT" | "SASL_SSL") {
            return Err(format!(
                "{name} listeners are not supported by this version"
            ));
        }
        Ok(Self {
            name,
            address: address.parse()?,
        })
    }
}

/// Listeners, each of another name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listeners(pub Vec<NamedAddress>);

impl Listeners {
    /// The address of the listener called `name`.
    pub fn get(&self, name: &str) -> Option<&HostPort> {
        self.0
            .iter()
            .find(|listener| listener.name == name)
            .map(|listener| &listener.address)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|listener| listener.name.as_str())
    }
}

impl FromStr for Listeners {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut listeners: Vec<NamedAddress> = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let listener: NamedAddress =
                part.parse().map_err(|reason| format!("{part}: {reason}"))?;
            if listeners.iter().any(|other| other.name == listener.name) {
                return Err(format!("two listeners are called {}", listener.name));
            }
            listeners.push(listener);
        }
        Ok(Self(listeners))
    }
}

/// Voters of the metadata quorum: `0@host:port,1@host:port,…`, the ports those of their gRPC listeners.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Voters(pub Vec<(BrokerId, HostPort)>);

impl FromStr for Voters {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut voters: Vec<(BrokerId, HostPort)> = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (id, address) = part
                .split_once('@')
                .ok_or_else(|| format!("{part}: it must be id@host:port"))?;
            let id = id
                .parse()
                .ok()
                .filter(|id| *id >= 0)
                .ok_or_else(|| format!("{id:?} is not a node id"))?;
            let address: HostPort = address
                .parse()
                .map_err(|reason| format!("{part}: {reason}"))?;
            if address.is_wildcard() {
                return Err(format!(
                    "{part}: the other nodes cannot connect to a wildcard address"
                ));
            }
            if voters.iter().any(|(other, _)| *other == BrokerId(id)) {
                return Err(format!("node {id} is listed twice"));
            }
            voters.push((BrokerId(id), address));
        }
        if voters.is_empty() {
            return Err("at least one voter is needed".into());
        }
        Ok(Self(voters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "localhost:9092",
            "127.0.0.1:0",
            ":9092",
            "[::1]:9092",
            "kittiwake-0.kittiwake_x:1",
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in [
            "localhost",
            "localhost:",
            "a:70000",
            "::1:9092",
            "[nonsense]:1",
            "two words:1",
            "",
        ] {
            assert!(text.parse::<HostPort>().is_err(), "{text:?}");
        }
        assert_eq!(
            ":5".parse::<HostPort>().unwrap().bind_address(),
            ("0.0.0.0", 5)
        );
    }

    #[test]
    fn listeners_have_a_name_each() {
        let listeners: Listeners = "127.0.0.1:1, internal://[::]:2".parse().unwrap();
        assert_eq!(
            listeners.names().collect::<Vec<_>>(),
            ["PLAINTEXT", "INTERNAL"]
        );
        assert!(listeners.get("INTERNAL").unwrap().is_wildcard());
        for text in [
            "A://h:1,a://h:2",
            "SASL_SSL://h:1",
            "://h:1",
            "PLAINTEXT://h",
        ] {
            assert!(text.parse::<Listeners>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_wildcard_is_advertised_by_the_host_name() {
        let address = |text: &str| {
            text.parse::<HostPort>()
                .unwrap()
                .reachable_at(7, "gull")
                .to_string()
        };
        assert_eq!(address("0.0.0.0:0"), "gull:7");
        assert_eq!(address("127.0.0.1:0"), "127.0.0.1:7");
    }

    #[test]
    fn voters_are_distinct_and_reachable() {
        let voters: Voters = "0@a:1, 2@b:2".parse().unwrap();
        assert_eq!(
            voters.0[1],
            (
                BrokerId(2),
                HostPort {
                    host: "b".into(),
                    port: 2
                }
            )
        );
        for text in ["", "a:1", "x@a:1", "-1@a:1", "0@a:1,0@b:1", "0@0.0.0.0:1"] {
            assert!(text.parse::<Voters>().is_err(), "{text:?}");
        }
    }
}
