//! A disk that loses power: a redb backend that keeps what was synced apart from what was only
//! written.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use redb::StorageBackend;

/// A write is torn at multiples of this.
const SECTOR: usize = 512;

/// The disk under a store; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// What a reader sees now.
    seen: Vec<u8>,
    /// What is on the platter.
    synced: Vec<u8>,
    /// What happened since the last sync, in order.
    pending: Vec<Pending>,
    /// A picture to take right before a sync: after how many of them, and where to put it.
    picture: Option<(usize, Moment)>,
}

/// The disk as it was at one moment, if that moment came.
#[derive(Clone, Debug, Default)]
pub(super) struct Moment {
    disk: Arc<Mutex<Option<Disk>>>,
}

impl Moment {
    pub(super) fn take(&self) -> Option<Disk> {
        self.disk.lock().take()
    }
}

#[derive(Clone, Debug)]
enum Pending {
    Length(usize),
    Write(usize, Vec<u8>),
}

impl Disk {
    /// Remembers the disk as it will be when this many syncs are done and the next one is asked
    /// for.
    pub(super) fn lose_power_after(&self, syncs: usize) -> Moment {
        let moment = Moment::default();
        self.state.lock().picture = Some((syncs, moment.clone()));
        moment
    }

    /// The disk after the power came back: what was synced, and of the rest any part, in any
    /// order, each sector whole or not at all.
    pub(super) fn after_power_loss(&self, random: &mut StdRng) -> Self {
        let state = self.state.lock();
        let mut bytes = state.synced.clone();
        for pending in &state.pending {
            match pending {
                Pending::Length(length) if random.random() => bytes.resize(*length, 0),
                Pending::Length(_) => {}
                Pending::Write(offset, data) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        let start = offset + number * SECTOR;
                        if random.random() && start + sector.len() <= bytes.len() {
                            bytes[start..start + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        Self::holding(bytes)
    }

    /// The disk after the process died: the page cache survives.
    pub(super) fn after_kill(&self) -> Self {
        Self::holding(self.state.lock().seen.clone())
    }

    pub(super) fn holding(bytes: Vec<u8>) -> Self {
        let state = State {
            seen: bytes.clone(),
            synced: bytes,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state.lock().seen.clone()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        let start = offset as usize;
        let bytes = state.seen.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.seen.resize(length as usize, 0);
        state.pending.push(Pending::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        match state.picture.take() {
            Some((0, moment)) => {
                let now = State {
                    seen: state.seen.clone(),
                    synced: state.synced.clone(),
                    pending: state.pending.clone(),
                    picture: None,
                };
                *moment.disk.lock() = Some(Self {
                    state: Arc::new(Mutex::new(now)),
                });
            }
            Some((syncs, moment)) => state.picture = Some((syncs - 1, moment)),
            None => {}
        }
        state.synced = state.seen.clone();
        state.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let start = offset as usize;
        state
            .seen
            .get_mut(start..start + data.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        state.pending.push(Pending::Write(start, data.to_vec()));
        Ok(())
    }
}
