//! Where members are, and connections to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kittiwake_proto::kittiwake::raft::v1::raft_client::RaftClient;
use parking_lot::RwLock;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::ids::{BrokerId, DirectoryId};
use crate::transport::MESSAGE_BYTES_MAX;
use crate::types::{MemberNode, Membership};

/// How long a connection may take to be made. Longer, and the host is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection on which nothing was answered for so long is made anew. What was lost on it is sent
/// again by TCP ever more rarely, so that a member may long be back before it is heard on it.
const SILENT: Duration = Duration::from_secs(1);

/// The addresses of the members: what the membership says, and what this node's configuration says
/// of brokers. Either may be out of date: the membership if many nodes moved at once, the
/// configuration if it was not kept. Whoever answers at the wrong one says so and does nothing.
pub(crate) struct AddressBook {
    members: RwLock<BTreeMap<DirectoryId, MemberNode>>,
    configured: BTreeMap<BrokerId, String>,
}

impl AddressBook {
    pub(crate) fn new(voters: &[(BrokerId, String)]) -> Self {
        Self {
            members: RwLock::default(),
            configured: voters.iter().cloned().collect(),
        }
    }

    pub(crate) fn update(&self, membership: &Membership) {
        *self.members.write() = membership
            .nodes()
            .map(|(id, node)| (*id, node.clone()))
            .collect();
    }

    /// Where a member may be, the likeliest first; one or two addresses.
    fn of(&self, id: DirectoryId, node: &MemberNode) -> Vec<String> {
        let members = self.members.read();
        let known = members.get(&id).unwrap_or(node).address.clone();
        let configured = self.configured.get(&node.broker);
        let configured = configured.filter(|address| **address != known).cloned();
        [known].into_iter().chain(configured).collect()
    }

    /// Every address but a broker's own.
    pub(crate) fn all_but(&self, broker: BrokerId) -> Vec<String> {
        let members = self.members.read();
        let members = members.values().map(|node| (node.broker, &node.address));
        let configured = self.configured.iter().map(|(id, address)| (*id, address));
        let mut addresses = Vec::new();
        for (_, address) in configured.chain(members).filter(|(id, _)| *id != broker) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }
}

/// A connection to one member, made when it is needed, and made again where it may be better.
pub(crate) struct Connection {
    addresses: Arc<AddressBook>,
    id: DirectoryId,
    node: MemberNode,
    /// The address, and the client if it is one.
    current: Option<(String, Option<RaftClient<Channel>>)>,
    /// When it was made, or last answered on.
    heard: Instant,
}

impl Connection {
    pub(crate) fn new(addresses: Arc<AddressBook>, id: DirectoryId, node: MemberNode) -> Self {
        Self {
            addresses,
            id,
            node,
            current: None,
            heard: Instant::now(),
        }
    }

    pub(crate) fn is_to(&self, id: DirectoryId) -> bool {
        self.id == id
    }

    /// `None` if the address is not one.
    pub(crate) fn client(&mut self) -> Option<RaftClient<Channel>> {
        if self.current.is_none() {
            let known = self.addresses.of(self.id, &self.node);
            self.dial(known.into_iter().next());
        }
        self.current.as_ref().and_then(|(_, client)| client.clone())
    }

    /// The member has answered.
    pub(crate) fn answered(&mut self) {
        self.heard = Instant::now();
    }

    /// A call has failed: the member may be elsewhere by now.
    pub(crate) fn failed(&mut self) {
        let current = self.current.as_ref().map(|(address, _)| address.clone());
        let known = self.addresses.of(self.id, &self.node);
        let position = known
            .iter()
            .position(|known| Some(known) == current.as_ref());
        let next = position.map_or(0, |position| (position + 1) % known.len());
        let silent = self.heard.elapsed() >= SILENT;
        if position.is_none() || known.len() > 1 || silent {
            self.dial(known.into_iter().nth(next));
        }
    }

    fn dial(&mut self, address: Option<String>) {
        self.heard = Instant::now();
        self.current = address.map(|address| {
            let client = connect(&address);
            (address, client)
        });
    }
}

/// `None` if the address is not one.
pub(super) fn connect(address: &str) -> Option<RaftClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    let channel = endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_lazy();
    Some(
        RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
    )
}
