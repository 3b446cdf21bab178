//! A follower's connection to a leader's replication listener: Fetch requests out, responses in.
//!
//! A response is received into one buffer that is used again for the next: its records are slices of it, appended to the
//! logs from there. The buffer grows with what arrives, not with what a frame claims.

use bytes::{Buf as _, BytesMut};
use kafka_wire::{
    FetchRequest, FetchResponse, OutboundFrameLimits, encode_request, response_header_version_for,
};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, KafkaDecode, StrBytes};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The version followers speak: topic ids and replica epochs, and nothing newer that they would have a use for.
const FETCH_VERSION: ApiVersion = ApiVersion::new(17);

/// Bytes of a frame's size field.
const SIZE_LEN: usize = 4;

/// Beyond the records a response was limited to: one batch may be larger, and each partition has its header.
const RESPONSE_SLACK_BYTES: usize = 128 << 20;

/// The buffer is read into in steps of this.
const READ_BYTES: usize = 1 << 20;

/// A quiet connection keeps no larger buffer than this.
const KEPT_BYTES: usize = 64 << 10;

/// One connection.
#[derive(Debug)]
pub(super) struct Channel {
    stream: TcpStream,
    client_id: StrBytes,
    next_correlation_id: i32,
    in_flight: VecDeque<i32>,
    inbound: BytesMut,
    outbound: BytesMut,
    response_bytes_max: usize,
}

impl Channel {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// No connection within `patience`.
    pub(super) async fn connect(
        host: &str,
        port: u16,
        client_id: &str,
        patience: Duration,
        records_bytes_max: usize,
    ) -> io::Result<Self> {
        let stream = timeout(patience, TcpStream::connect((host, port))).await??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            client_id: client_id.into(),
            next_correlation_id: 0,
            in_flight: VecDeque::new(),
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
            response_bytes_max: records_bytes_max + RESPONSE_SLACK_BYTES,
        })
    }

    /// Requests without an answer.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends a request. Not safe to cancel.
    ///
    /// # Errors
    /// A broken connection.
    pub(super) async fn send(&mut self, request: &FetchRequest) -> io::Result<()> {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = correlation_id.wrapping_add(1);
        self.outbound.clear();
        encode_request(
            &mut self.outbound,
            correlation_id,
            Some(self.client_id.clone()),
            request,
            FETCH_VERSION,
            OutboundFrameLimits::new(i32::MAX as usize),
        )
        .map_err(io::Error::other)?;
        self.stream.write_all(&self.outbound).await?;
        if self.outbound.capacity() > KEPT_BYTES {
            self.outbound = BytesMut::new();
        }
        self.in_flight.push_back(correlation_id);
        Ok(())
    }

    /// Receives the next response. Safe to cancel.
    ///
    /// # Errors
    /// A broken connection, or bytes that are no response.
    pub(super) async fn receive(&mut self) -> io::Result<FetchResponse> {
        let size = self.receive_size().await?;
        while self.inbound.len() < SIZE_LEN + size {
            let missing = SIZE_LEN + size - self.inbound.len();
            self.inbound.reserve(missing.min(READ_BYTES));
            self.receive_some().await?;
        }
        self.inbound.advance(SIZE_LEN);
        let frame = self.inbound.split_to(size).freeze();
        if self.inbound.is_empty() && size < KEPT_BYTES && self.inbound.capacity() > KEPT_BYTES {
            self.inbound = BytesMut::new();
        }
        let mut limits = DecodeLimits::default();
        limits.max_frame_bytes = size;
        limits.max_bytes_bytes = size;
        limits.max_array_elements = size;
        let header_version =
            response_header_version_for::<FetchRequest>(FETCH_VERSION).map_err(invalid)?;
        let mut decoder = Decoder::new(frame, limits).map_err(invalid)?;
        let correlation_id = decoder.read_i32().map_err(invalid)?;
        if header_version > 0 {
            decoder.read_tagged_fields().map_err(invalid)?;
        }
        if self.in_flight.pop_front() != Some(correlation_id) {
            return Err(invalid("an answer to nothing that was asked"));
        }
        FetchResponse::decode(&mut decoder, FETCH_VERSION).map_err(invalid)
    }

    async fn receive_size(&mut self) -> io::Result<usize> {
        loop {
            if let Some(field) = self.inbound.first_chunk::<SIZE_LEN>() {
                let claimed = i32::from_be_bytes(*field);
                return usize::try_from(claimed)
                    .ok()
                    .filter(|size| *size <= self.response_bytes_max)
                    .ok_or_else(|| invalid(format!("a response claims {claimed} bytes")));
            }
            self.inbound.reserve(SIZE_LEN);
            self.receive_some().await?;
        }
    }

    async fn receive_some(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.inbound).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
