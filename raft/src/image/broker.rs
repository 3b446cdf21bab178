//! Brokers: registration, fencing, draining.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::command::{Applied, CommandError, LastStop, RegisterBroker};
use crate::ids::{BrokerEpoch, BrokerId, DirectoryId, IncarnationId};
use crate::image::ClusterImage;

/// A registered broker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Broker {
    /// Its number.
    pub id: BrokerId,
    /// Its latest registration.
    pub epoch: BrokerEpoch,
    /// The data directory it registered with.
    pub directory_id: DirectoryId,
    /// The process that registered.
    pub incarnation_id: IncarnationId,
    /// Where it is reached, one per listener name.
    pub endpoints: Vec<Endpoint>,
    /// Failure domain, `broker.rack`.
    pub rack: Option<String>,
    /// Not in any ISR, leads nothing, left out of clients' metadata.
    pub fenced: bool,
    /// Metadata offset of the last entry that fenced it: its registration, or a later fence.
    pub fenced_at: u64,
    /// Gives its leaderships away and gets no new ones where another replica can lead.
    pub draining: bool,
}

impl Broker {
    /// The address of a listener, by its name.
    #[must_use]
    pub fn endpoint(&self, listener: &str) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.listener == listener)
    }
}

/// Address of a broker's listener.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Name of the listener, for example `PLAINTEXT` or `REPLICATION`.
    pub listener: String,
    /// Advertised host name or address.
    pub host: String,
    /// Advertised TCP port.
    pub port: u16,
}

impl ClusterImage {
    pub(super) fn register_broker(
        &mut self,
        offset: u64,
        request: &RegisterBroker,
    ) -> Result<Applied, CommandError> {
        validate_registration(self, request)?;
        let previous = self.brokers.get(&request.broker).cloned();
        if let Some(previous) = &previous
            && previous.incarnation_id == request.incarnation_id
        {
            let mut same = Broker::clone(previous);
            same.endpoints.clone_from(&request.endpoints);
            same.rack.clone_from(&request.rack);
            self.brokers.insert(same.id, Arc::new(same));
            return Ok(Applied::Registered(previous.epoch));
        }

        let epoch = BrokerEpoch(i64::try_from(offset).map_err(|_| {
            CommandError::InvalidRegistration("the metadata offset has no broker epoch".into())
        })?);
        self.brokers.insert(
            request.broker,
            Arc::new(Broker {
                id: request.broker,
                epoch,
                directory_id: request.directory_id,
                incarnation_id: request.incarnation_id,
                endpoints: request.endpoints.clone(),
                rack: request.rack.clone(),
                fenced: true,
                fenced_at: offset,
                draining: false,
            }),
        );
        if let Some(previous) = previous {
            let kept = what_is_kept(&previous, request);
            self.alter_partitions_of(request.broker, |partition, context| {
                partition.lose_broker(request.broker, kept, context);
                partition.forget_damage(request.broker);
            });
        }
        Ok(Applied::Registered(epoch))
    }

    pub(super) fn fence_broker(
        &mut self,
        offset: u64,
        broker: BrokerId,
        epoch: BrokerEpoch,
    ) -> Result<Applied, CommandError> {
        let mut fenced = Broker::clone(self.current_broker(broker, epoch)?);
        fenced.fenced = true;
        fenced.fenced_at = offset;
        self.brokers.insert(broker, Arc::new(fenced));
        self.alter_partitions_of(broker, |partition, context| {
            partition.lose_broker(broker, Kept::Log, context);
        });
        Ok(Applied::Done)
    }

    pub(super) fn unfence_broker(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
        reconciled: u64,
    ) -> Result<Applied, CommandError> {
        let mut live = Broker::clone(self.current_broker(broker, epoch)?);
        if reconciled < live.fenced_at {
            return Err(CommandError::FencedSince {
                offset: live.fenced_at,
            });
        }
        live.fenced = false;
        self.brokers.insert(broker, Arc::new(live));
        self.alter_partitions_of(broker, |partition, context| {
            partition.broker_is_back(broker, context);
        });
        Ok(Applied::Done)
    }

    pub(super) fn drain_broker(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
        draining: bool,
    ) -> Result<Applied, CommandError> {
        let mut changed = Broker::clone(self.current_broker(broker, epoch)?);
        changed.draining = draining;
        self.brokers.insert(broker, Arc::new(changed));
        if draining {
            self.alter_partitions_of(broker, |partition, context| {
                partition.move_leader_from(broker, context);
            });
        } else {
            self.alter_partitions_of(broker, |partition, context| {
                partition.broker_is_back(broker, context);
            });
        }
        Ok(Applied::Done)
    }

    pub(super) fn unregister_broker(&mut self, broker: BrokerId) -> Result<Applied, CommandError> {
        let registered = self
            .brokers
            .get(&broker)
            .ok_or(CommandError::UnknownBroker(broker))?;
        let has_replicas = self
            .topics()
            .flat_map(|topic| &topic.partitions)
            .any(|partition| partition.replicas.contains(&broker));
        if !registered.fenced || has_replicas {
            return Err(CommandError::BrokerInUse(broker));
        }
        self.brokers.remove(&broker);
        self.broker_configs.remove(&Some(broker));
        Ok(Applied::Done)
    }

    /// The broker, if `epoch` is its latest registration.
    pub(super) fn current_broker(
        &self,
        broker: BrokerId,
        epoch: BrokerEpoch,
    ) -> Result<&Arc<Broker>, CommandError> {
        current(&self.brokers, broker, epoch)
    }
}

/// The broker among `brokers`, if `epoch` is its latest registration.
pub(super) fn current(
    brokers: &BTreeMap<BrokerId, Arc<Broker>>,
    broker: BrokerId,
    epoch: BrokerEpoch,
) -> Result<&Arc<Broker>, CommandError> {
    let registered = brokers
        .get(&broker)
        .ok_or(CommandError::UnknownBroker(broker))?;
    if registered.epoch != epoch {
        return Err(CommandError::StaleBrokerEpoch {
            current: registered.epoch,
        });
    }
    Ok(registered)
}

/// What a broker that left the ISR still has on its disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kept {
    /// All it ever acknowledged: it stays an eligible leader.
    Log,
    /// Perhaps not the newest records: it is no longer eligible, only a last resort.
    Prefix,
    /// Nothing: its data directory is another one.
    Nothing,
}

fn what_is_kept(previous: &Broker, request: &RegisterBroker) -> Kept {
    if previous.directory_id != request.directory_id {
        return Kept::Nothing;
    }
    match request.last_stop {
        LastStop::Clean(epoch) if epoch == previous.epoch => Kept::Log,
        LastStop::Killed => Kept::Log,
        // A marker of an earlier life says nothing about the latest one.
        LastStop::Clean(_) | LastStop::Lossy => Kept::Prefix,
    }
}

fn validate_registration(
    image: &ClusterImage,
    request: &RegisterBroker,
) -> Result<(), CommandError> {
    let refuse = |reason: String| Err(CommandError::InvalidRegistration(reason));
    if request.broker.0 < 0 {
        return refuse(format!("negative broker id {}", request.broker));
    }
    if request.endpoints.is_empty() {
        return refuse("no endpoints".into());
    }
    for (position, endpoint) in request.endpoints.iter().enumerate() {
        if endpoint.listener.is_empty() || endpoint.host.is_empty() || endpoint.port == 0 {
            return refuse("an endpoint without listener name, host or port".into());
        }
        if request.endpoints[..position]
            .iter()
            .any(|other| other.listener == endpoint.listener)
        {
            return refuse(format!("listener {} appears twice", endpoint.listener));
        }
    }
    let twin = image
        .brokers
        .values()
        .find(|other| other.id != request.broker && other.directory_id == request.directory_id);
    if let Some(twin) = twin {
        return refuse(format!(
            "data directory {} belongs to broker {}",
            request.directory_id, twin.id
        ));
    }
    Ok(())
}
