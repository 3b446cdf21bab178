//! The metadata store: one redb file, `metadata/quorum.redb`.
//!
//! | table      | key              | value                                       |
//! |------------|------------------|---------------------------------------------|
//! | `meta`     | `header`         | sealed `metadata.v1.StoreHeader`            |
//! | `meta`     | `vote`           | sealed `metadata.v1.Vote`                   |
//! | `meta`     | `committed`      | sealed `metadata.v1.LogId`, a lower bound   |
//! | `meta`     | `purged`         | sealed `metadata.v1.LogId`, inclusive       |
//! | `entries`  | index, `u64`     | sealed `metadata.v1.Entry`                  |
//! | `snapshot` | 0                | sealed `metadata.v1.Snapshot`               |
//!
//! *Sealed* is `CRC32C (u32, little endian) of the message, message`: redb's page checksums are its
//! own business, and what we wrote is checked by what we wrote.
//!
//! Every batch is one transaction in two phases (redb's term): the data is on the disk before the
//! header that points to it. It costs a second fsync, and buys that a header pointing to damaged
//! pages is damage and never a torn write, so that opening can refuse it. With one phase redb would
//! go back to the transaction before, and an acknowledged vote would be forgotten in silence.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use kittiwake_proto::metadata::v1 as pb;
use prost::Message;
use prost::bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
};

use crate::codec::{
    CodecError, decode_entry, decode_log_id, decode_vote, directory_id, encode_entry,
    encode_log_id, encode_vote,
};
use crate::ids::{BrokerId, DirectoryId};
use crate::quorum::OpenError;
use crate::types::{Entry, LogId, Vote};

/// The format this version writes, and the newest it reads.
const FORMAT: u32 = 1;

/// Directory of the store, below the node's data directory.
const DIRECTORY: &str = "metadata";
const FILE: &str = "quorum.redb";
/// A store that is being created; it gets its name when it is complete.
const NEW_FILE: &str = "quorum.redb.new";

/// The log is in memory while the node runs; redb needs to remember its few inner pages only.
const CACHE_BYTES: usize = 1024 * 1024;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
const SNAPSHOT: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("snapshot");

const HEADER: &str = "header";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const CURRENT: u8 = 0;

/// Whose store it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    pub(crate) cluster_id: String,
    pub(crate) broker: BrokerId,
}

/// One change of the store.
#[derive(Debug)]
pub(super) enum Change {
    Vote(Vote),
    /// Entries by index, each as [`seal_entry`] made it.
    Append(Vec<(u64, Vec<u8>)>),
    /// Removes entries from this index on.
    TruncateFrom(u64),
    /// Removes entries up to this one, inclusive.
    PurgeTo(LogId),
    Committed(LogId),
    /// An encoded `metadata.v1.Snapshot`.
    Snapshot(Bytes),
}

/// What a store held when it was opened.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) directory_id: DirectoryId,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Without a gap; from the one after `purged`, if anything was.
    pub(crate) entries: Vec<Entry>,
    /// An encoded `metadata.v1.Snapshot`.
    pub(crate) snapshot: Option<Bytes>,
}

impl Recovered {
    fn empty(directory_id: DirectoryId) -> Self {
        Self {
            directory_id,
            vote: None,
            committed: None,
            purged: None,
            entries: Vec::new(),
            snapshot: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Store {
    database: Database,
}

impl Store {
    /// Opens the store below `data_dir`, creating it if there is none.
    pub(super) fn open(data_dir: &Path, owner: &Owner) -> Result<(Self, Recovered), OpenError> {
        let directory = data_dir.join(DIRECTORY);
        let path = directory.join(FILE);
        let io_error = |source| OpenError::Io {
            path: directory.clone(),
            source,
        };
        fs::create_dir_all(&directory).map_err(io_error)?;
        if path.try_exists().map_err(io_error)? {
            let file = File::options()
                .read(true)
                .write(true)
                .open(&path)
                .map_err(io_error)?;
            let backend =
                redb::backends::FileBackend::new(file).map_err(|error| open_error(&path, error))?;
            return Self::open_backend(backend, &path, owner);
        }
        let created = create(&directory, owner).map_err(io_error)?;
        sync_directory(data_dir).map_err(io_error)?;
        Ok(created)
    }

    /// Opens a complete store on any backend; `path` is for messages.
    pub(super) fn open_backend(
        backend: impl StorageBackend,
        path: &Path,
        owner: &Owner,
    ) -> Result<(Self, Recovered), OpenError> {
        // redb answers most damage with an error, some with a panic.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| {
            let database = builder()
                .set_check_integrity_on_open(true)
                .create_with_backend(backend)
                .map_err(|error| open_error(path, error))?;
            let recovered = recover(&database, path, owner)?;
            Ok((Self { database }, recovered))
        }));
        opened.unwrap_or_else(|panic| {
            Err(OpenError::Damaged {
                path: path.to_owned(),
                reason: panic_message(&*panic),
            })
        })
    }

    /// An empty store on an empty backend.
    pub(super) fn create(
        backend: impl StorageBackend,
        owner: &Owner,
    ) -> io::Result<(Self, Recovered)> {
        let database = builder()
            .create_with_backend(backend)
            .map_err(io::Error::other)?;
        let directory_id = DirectoryId::random();
        let header = pb::StoreHeader {
            format: FORMAT,
            cluster_id: owner.cluster_id.clone(),
            broker: owner.broker.0,
            directory_id: directory_id.to_bytes().to_vec().into(),
        };
        let transaction = begin(&database)?;
        {
            // All tables exist from the start, so that a missing one is damage.
            let mut meta = transaction.open_table(META).map_err(io::Error::other)?;
            meta.insert(HEADER, seal(&header).as_slice())
                .map_err(io::Error::other)?;
            transaction.open_table(ENTRIES).map_err(io::Error::other)?;
            transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
        }
        transaction.commit().map_err(io::Error::other)?;
        Ok((Self { database }, Recovered::empty(directory_id)))
    }

    /// Makes all changes durable, in order, or none. Blocks for the disk.
    pub(super) fn commit<'a>(
        &self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> io::Result<()> {
        let transaction = begin(&self.database)?;
        {
            let mut meta = transaction.open_table(META).map_err(io::Error::other)?;
            let mut entries = transaction.open_table(ENTRIES).map_err(io::Error::other)?;
            let mut snapshot = transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
            for change in changes {
                match change {
                    Change::Vote(vote) => meta
                        .insert(VOTE, seal(&encode_vote(vote)).as_slice())
                        .map(drop),
                    Change::Committed(id) => meta
                        .insert(COMMITTED, seal(&encode_log_id(id)).as_slice())
                        .map(drop),
                    Change::Append(new) => new.iter().try_for_each(|(index, sealed)| {
                        entries.insert(*index, sealed.as_slice()).map(drop)
                    }),
                    Change::TruncateFrom(index) => entries.retain_in(*index.., |_, _| false),
                    Change::PurgeTo(id) => meta
                        .insert(PURGED, seal(&encode_log_id(id)).as_slice())
                        .map(drop)
                        .and_then(|()| entries.retain_in(..=id.index, |_, _| false)),
                    Change::Snapshot(bytes) => snapshot
                        .insert(CURRENT, seal_bytes(bytes).as_slice())
                        .map(drop),
                }
                .map_err(io::Error::other)?;
            }
        }
        transaction.commit().map_err(io::Error::other)
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn begin(database: &Database) -> io::Result<redb::WriteTransaction> {
    let mut transaction = database.begin_write().map_err(io::Error::other)?;
    transaction
        .set_durability(redb::Durability::Immediate)
        .map_err(io::Error::other)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// A crash on the way leaves a file under another name, which the next start replaces.
fn create(directory: &Path, owner: &Owner) -> io::Result<(Store, Recovered)> {
    let new = directory.join(NEW_FILE);
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)?;
    let backend = redb::backends::FileBackend::new(file).map_err(io::Error::other)?;
    let created = Store::create(backend, owner)?;
    fs::rename(&new, directory.join(FILE))?;
    sync_directory(directory)?;
    Ok(created)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn recover(database: &Database, path: &Path, owner: &Owner) -> Result<Recovered, OpenError> {
    let damaged = |reason: String| OpenError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let read = |error: &dyn std::fmt::Display| damaged(error.to_string());
    let transaction = database.begin_read().map_err(|error| read(&error))?;
    let meta = transaction.open_table(META).map_err(|error| read(&error))?;
    let get = |key: &'static str| -> Result<Option<Bytes>, OpenError> {
        let value = meta.get(key).map_err(|error| read(&error))?;
        value
            .map(|value| unseal(value.value()).map(Bytes::copy_from_slice))
            .transpose()
            .map_err(|error| damaged(format!("{key}: {error}")))
    };
    let log_id = |key| -> Result<Option<LogId>, OpenError> {
        let bytes = get(key)?;
        let decoded = bytes.map(pb::LogId::decode).transpose();
        Ok(decoded
            .map_err(|error| damaged(format!("{key}: {error}")))?
            .as_ref()
            .map(decode_log_id))
    };

    let header = get(HEADER)?.ok_or_else(|| damaged("no header".into()))?;
    let header = pb::StoreHeader::decode(header).map_err(|error| read(&error))?;
    check_owner(&header, path, owner)?;
    let vote = get(VOTE)?
        .map(|bytes| -> Result<Vote, CodecError> { decode_vote(&pb::Vote::decode(bytes)?) })
        .transpose()
        .map_err(|error| damaged(format!("{VOTE}: {error}")))?;

    let purged = log_id(PURGED)?;
    let mut entries = Vec::new();
    let mut next = purged.map(|id| id.index + 1);
    let table = transaction
        .open_table(ENTRIES)
        .map_err(|error| read(&error))?;
    for row in table.iter().map_err(|error| read(&error))? {
        let (key, value) = row.map_err(|error| read(&error))?;
        let entry = open_entry(value.value()).map_err(|error| match error {
            CodecError::UnknownCommand { .. } => OpenError::NewerRecord {
                path: path.to_owned(),
                reason: format!("entry {}: {error}", key.value()),
            },
            damage => damaged(format!("entry {}: {damage}", key.value())),
        })?;
        let index = key.value();
        if entry.log_id.index != index || next.is_some_and(|next| next != index) {
            return Err(damaged(format!("entry {index} is out of place")));
        }
        next = Some(index + 1);
        entries.push(entry);
    }

    let table = transaction
        .open_table(SNAPSHOT)
        .map_err(|error| read(&error))?;
    let snapshot = table
        .get(CURRENT)
        .map_err(|error| read(&error))?
        .map(|value| unseal(value.value()).map(Bytes::copy_from_slice))
        .transpose()
        .map_err(|error| damaged(format!("snapshot: {error}")))?;

    Ok(Recovered {
        directory_id: directory_id(&header.directory_id).map_err(|error| read(&error))?,
        vote,
        committed: log_id(COMMITTED)?,
        purged,
        entries,
        snapshot,
    })
}

fn check_owner(header: &pb::StoreHeader, path: &Path, owner: &Owner) -> Result<(), OpenError> {
    let path = || path.to_owned();
    if header.format > FORMAT {
        return Err(OpenError::NewerFormat {
            path: path(),
            found: header.format,
            supported: FORMAT,
        });
    }
    if header.cluster_id != owner.cluster_id {
        return Err(OpenError::ClusterId {
            path: path(),
            expected: owner.cluster_id.clone(),
            found: header.cluster_id.clone(),
        });
    }
    if header.broker != owner.broker.0 {
        return Err(OpenError::NodeId {
            path: path(),
            expected: owner.broker,
            found: BrokerId(header.broker),
        });
    }
    Ok(())
}

pub(super) fn open_entry(sealed: &[u8]) -> Result<Entry, CodecError> {
    decode_entry(&pb::Entry::decode(unseal(sealed)?)?)
}

/// An entry as the store holds it.
pub(super) fn seal_entry(entry: &Entry) -> Vec<u8> {
    seal(&encode_entry(entry))
}

pub(super) fn seal(message: &impl Message) -> Vec<u8> {
    seal_bytes(&message.encode_to_vec())
}

fn seal_bytes(message: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(4 + message.len());
    sealed.extend_from_slice(&crc32c::crc32c(message).to_le_bytes());
    sealed.extend_from_slice(message);
    sealed
}

fn unseal(sealed: &[u8]) -> Result<&[u8], CodecError> {
    let (crc, message) = sealed
        .split_first_chunk::<4>()
        .ok_or(CodecError::Checksum)?;
    if crc32c::crc32c(message) != u32::from_le_bytes(*crc) {
        return Err(CodecError::Checksum);
    }
    Ok(message)
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        DatabaseError::Storage(redb::StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            OpenError::Io { path, source }
        }
        damage => OpenError::Damaged {
            path,
            reason: damage.to_string(),
        },
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("unreadable")
        .to_owned()
}

/// For messages: where the store of a data directory is.
pub(crate) fn store_path(data_dir: &Path) -> PathBuf {
    data_dir.join(DIRECTORY).join(FILE)
}
