//! The Kafka protocol by hand: frames that no client library would send, byte by byte.
//!
//! ```text
//! request:  length i32 | api_key i16 | api_version i16 | correlation_id i32 | client_id i16 + bytes | body
//! batch v2: base_offset i64 | batch_length i32 | leader_epoch i32 | magic i8 | crc u32 | attributes i16 |
//!           last_offset_delta i32 | base_timestamp i64 | max_timestamp i64 | producer_id i64 | producer_epoch i16 |
//!           base_sequence i32 | records_count i32 | records            (the CRC covers everything from attributes on)
//! ```

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long a test waits for an answer that must come.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

const PRODUCE: i16 = 0;
/// Connections here have one request in flight at a time, so they can share a number.
const CORRELATION: i32 = 7;

/// The largest answer these tests accept; anything longer is a broken length.
const ANSWER_LEN_MAX: usize = 64 << 20;

/// Big-endian bytes, put together by hand.
#[derive(Debug, Clone, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a signed byte.
    pub fn i8(mut self, value: i8) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends an int16.
    pub fn i16(mut self, value: i16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends an int32.
    pub fn i32(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends an int64.
    pub fn i64(mut self, value: i64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Appends a string with an int16 length.
    pub fn string(self, text: &str) -> Self {
        self.i16(text.len() as i16).raw(text.as_bytes())
    }

    /// Appends a compact string: its length plus one as a varint, for the flexible versions.
    pub fn compact_string(self, text: &str) -> Self {
        self.unsigned_varint(text.len() as u32 + 1)
            .raw(text.as_bytes())
    }

    /// Appends an unsigned varint.
    pub fn unsigned_varint(mut self, mut value: u32) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    /// Appends a zigzag varint, as records use.
    pub fn varint(self, value: i32) -> Self {
        self.unsigned_varint(((value << 1) ^ (value >> 31)) as u32)
    }
}

/// Takes an answer apart, field by field.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields of an answer's body.
    pub fn of(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// The next `length` bytes.
    pub fn raw(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .with_context(|| format!("{length} bytes expected, {} left", self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.raw(N)?.try_into()?)
    }

    /// A boolean.
    pub fn bool(&mut self) -> Result<bool> {
        Ok(self.array::<1>()? != [0])
    }

    /// An int16.
    pub fn i16(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    /// An int32.
    pub fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// An int64.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A string with an int16 length; `None` for null.
    pub fn string(&mut self) -> Result<Option<String>> {
        match usize::try_from(self.i16()?) {
            Ok(length) => Ok(Some(String::from_utf8(self.raw(length)?.to_vec())?)),
            Err(_) => Ok(None),
        }
    }

    /// An array with an int32 length, read by `element`; null is empty.
    pub fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let length = self.i32()?.max(0);
        (0..length).map(|_| element(self)).collect()
    }
}

/// A request frame with an ordinary header; `flexible` adds the header's (empty) tagged fields.
pub fn request(
    api_key: i16,
    api_version: i16,
    correlation_id: i32,
    flexible: bool,
    body: &[u8],
) -> Vec<u8> {
    let mut header = Bytes::new()
        .i16(api_key)
        .i16(api_version)
        .i32(correlation_id)
        .string("cluster-tests");
    if flexible {
        header = header.unsigned_varint(0);
    }
    let frame = header.raw(body);
    Bytes::new().i32(frame.0.len() as i32).raw(&frame.0).0
}

/// The parts of a batch that a test may falsify; the defaults make a valid one.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Must be 2.
    pub magic: i8,
    /// Codec in the low three bits: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
    pub attributes: i16,
    /// Must be `records_count - 1`.
    pub last_offset_delta: i32,
    /// Producer id, -1 for none.
    pub producer_id: i64,
    /// Producer epoch, -1 for none.
    pub producer_epoch: i16,
    /// Sequence of the first record, -1 for none.
    pub base_sequence: i32,
    /// Must be the number of records.
    pub records_count: i32,
    /// Added to the true `batch_length`.
    pub length_lie: i32,
    /// XORed into the true CRC.
    pub crc_lie: u32,
    /// What follows the header, compressed if `attributes` say so.
    pub records: Vec<u8>,
}

impl Batch {
    /// A valid uncompressed batch of `values`, without keys or a producer id.
    pub fn of(values: &[&[u8]]) -> Self {
        let records = values
            .iter()
            .enumerate()
            .flat_map(|(index, value)| record(index as i32, value))
            .collect();
        let count = values.len() as i32;
        Self {
            magic: 2,
            attributes: 0,
            last_offset_delta: count - 1,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            records_count: count,
            length_lie: 0,
            crc_lie: 0,
            records,
        }
    }

    /// The batch's bytes.
    pub fn encode(&self) -> Vec<u8> {
        /// leader_epoch, magic and crc: what `batch_length` counts before the checksummed part.
        const BEFORE_CRC_RANGE: i32 = 4 + 1 + 4;
        let checked = Bytes::new()
            .i16(self.attributes)
            .i32(self.last_offset_delta)
            .i64(0)
            .i64(0)
            .i64(self.producer_id)
            .i16(self.producer_epoch)
            .i32(self.base_sequence)
            .i32(self.records_count)
            .raw(&self.records);
        let crc = crc32c::crc32c(&checked.0) ^ self.crc_lie;
        let length = BEFORE_CRC_RANGE + checked.0.len() as i32 + self.length_lie;
        Bytes::new()
            .i64(0)
            .i32(length)
            .i32(-1)
            .i8(self.magic)
            .raw(&crc.to_be_bytes())
            .raw(&checked.0)
            .0
    }
}

/// One record of a v2 batch: length, attributes, timestamp delta, offset delta, null key, value, no headers.
fn record(offset_delta: i32, value: &[u8]) -> Vec<u8> {
    let body = Bytes::new()
        .i8(0)
        .varint(0)
        .varint(offset_delta)
        .varint(-1)
        .varint(value.len() as i32)
        .raw(value)
        .varint(0);
    Bytes::new().varint(body.0.len() as i32).raw(&body.0).0
}

/// `acks`: every in-sync replica must have the records.
pub const ACKS_ALL: i16 = -1;
/// `acks`: the leader alone must have them.
pub const ACKS_LEADER: i16 = 1;

/// Body of Produce v3–v8 with acks=all: one topic, one partition, these record bytes.
pub fn produce_body(topic: &str, partition: i32, records: &[u8]) -> Vec<u8> {
    produce_body_with(ACKS_ALL, topic, partition, records)
}

/// The same with `acks` of the test's choice.
pub fn produce_body_with(acks: i16, topic: &str, partition: i32, records: &[u8]) -> Vec<u8> {
    let records_field = Bytes::new().i32(records.len() as i32).raw(records);
    Bytes::new()
        .i16(-1)
        .i16(acks)
        .i32(30_000)
        .i32(1)
        .string(topic)
        .i32(1)
        .i32(partition)
        .raw(&records_field.0)
        .0
}

/// The body of a Fetch v11 of partition 0 of `topic` without a session: at once, from `offset` on, at most `bytes_max`. By a
/// broker if `replica` is one, by a consumer in `rack` with -1.
pub fn fetch_body(replica: i32, topic: &str, offset: i64, bytes_max: i32, rack: &str) -> Vec<u8> {
    let partition = Bytes::new()
        .i32(0)
        .i32(-1)
        .i64(offset)
        .i64(-1)
        .i32(bytes_max);
    // Replica, longest wait, fewest and most bytes, isolation, session and its epoch; one topic, nothing forgotten.
    Bytes::new()
        .i32(replica)
        .i32(0)
        .i32(0)
        .i32(bytes_max)
        .i8(0)
        .i32(0)
        .i32(-1)
        .i32(1)
        .string(topic)
        .i32(1)
        .raw(&partition.0)
        .i32(0)
        .string(rack)
        .0
}

/// One connection to a node's Kafka listener.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects; answers are waited for at most [`ANSWER_DEADLINE`].
    pub fn open(address: SocketAddr) -> Result<Self> {
        Self::open_within(address, ANSWER_DEADLINE)
    }

    /// Connects; the connection and each answer are waited for at most `deadline`.
    pub fn open_within(address: SocketAddr, deadline: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, deadline)
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(deadline))?;
        stream.set_write_timeout(Some(deadline))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// The port at this end.
    pub fn port(&self) -> Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// Sends bytes as they are. A connection that the node has closed already is no error: the test reads the end next.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.write_all(bytes) {
            Err(error) if is_closed(&error) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Tells the node that nothing more will come, while answers can still be read.
    pub fn finish_sending(&mut self) -> Result<()> {
        match self.stream.shutdown(std::net::Shutdown::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected || is_closed(&error) => {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Whether neither an answer nor the end of the connection has arrived yet.
    pub fn is_silent(&self) -> Result<bool> {
        self.stream.set_nonblocking(true)?;
        let arrived = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false)?;
        match arrived {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Ok(_) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next answer without its length (correlation id first), or `None` if the node closed the connection.
    pub fn answer(&mut self) -> Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Err(error) if is_closed(&error) => return Ok(None),
            other => other.context("waiting for an answer or the end of the connection")?,
        }
        let length =
            usize::try_from(i32::from_be_bytes(length)).context("a negative answer length")?;
        if length > ANSWER_LEN_MAX {
            bail!("an answer of {length} bytes");
        }
        let mut body = vec![0; length];
        self.stream
            .read_exact(&mut body)
            .context("an answer cut short")?;
        Ok(Some(body))
    }

    /// Sends a request and returns its answer without the correlation id, which is checked.
    pub fn call(&mut self, api_key: i16, api_version: i16, body: &[u8]) -> Result<Option<Vec<u8>>> {
        self.ask(api_key, api_version, body)?;
        self.response()
    }

    /// Sends a request without waiting for its answer, which [`response`](Self::response) reads later.
    pub fn ask(&mut self, api_key: i16, api_version: i16, body: &[u8]) -> Result<()> {
        self.send(&request(api_key, api_version, CORRELATION, false, body))
    }

    /// The answer to [`ask`](Self::ask) without the correlation id, or `None` if the node closed the connection.
    pub fn response(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(answer) = self.answer()? else {
            return Ok(None);
        };
        let (correlation, rest) = answer
            .split_first_chunk::<4>()
            .context("an answer without correlation id")?;
        if i32::from_be_bytes(*correlation) != CORRELATION {
            bail!("an answer to another request");
        }
        Ok(Some(rest.to_vec()))
    }

    /// Produces to one partition with Produce v7; the error code and base offset, or `None` if the connection was closed.
    pub fn produce(
        &mut self,
        topic: &str,
        partition: i32,
        records: &[u8],
    ) -> Result<Option<(i16, i64)>> {
        self.ask_produce(ACKS_ALL, topic, partition, records)?;
        self.produced()
    }

    /// A producer id, by InitProducerId v0 without a transactional id.
    pub fn init_producer_id(&mut self) -> Result<i64> {
        const INIT_PRODUCER_ID: i16 = 22;
        let body = Bytes::new().i16(-1).i32(60_000);
        let answer = self
            .call(INIT_PRODUCER_ID, 0, &body.0)?
            .context("InitProducerId was not answered")?;
        // throttle i32 | error i16 | producer id i64 | epoch i16
        let mut fields = Fields::of(&answer);
        fields.i32()?;
        let error = fields.i16()?;
        if error != 0 {
            bail!("InitProducerId: error {error}");
        }
        fields.i64()
    }

    /// Sends a Produce v7 without waiting for its answer, which [`produced`](Self::produced) reads later.
    pub fn ask_produce(
        &mut self,
        acks: i16,
        topic: &str,
        partition: i32,
        records: &[u8],
    ) -> Result<()> {
        let body = produce_body_with(acks, topic, partition, records);
        self.ask(PRODUCE, 7, &body)
    }

    /// The answer to [`ask_produce`](Self::ask_produce): as [`produce`](Self::produce) returns it.
    pub fn produced(&mut self) -> Result<Option<(i16, i64)>> {
        let Some(answer) = self.response()? else {
            return Ok(None);
        };
        // responses i32 | topic string | partitions i32 | index i32 | error i16 | base offset i64 | …
        let mut fields = Fields::of(&answer);
        fields.i32()?;
        fields.string()?;
        fields.i32()?;
        fields.i32()?;
        Ok(Some((fields.i16()?, fields.i64()?)))
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_protobuf_s() {
        assert_eq!(Bytes::new().unsigned_varint(300).0, [0xac, 0x02]);
        assert_eq!(Bytes::new().varint(-1).0, [0x01]);
        assert_eq!(Bytes::new().varint(1).0, [0x02]);
    }

    #[test]
    fn a_batch_has_the_length_it_claims() {
        let bytes = Batch::of(&[b"one", b"two"]).encode();
        let claimed = i32::from_be_bytes(bytes[8..12].try_into().unwrap());
        assert_eq!(bytes.len(), 12 + claimed as usize);
        assert_eq!(
            u32::from_be_bytes(bytes[17..21].try_into().unwrap()),
            crc32c::crc32c(&bytes[21..])
        );
    }
}
