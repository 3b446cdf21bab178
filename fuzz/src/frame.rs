//! What a stranger may send to a listener: frames, request headers and the body of every API that is served.

use bytes::{Buf, Bytes, BytesMut};
use kittiwake::api;
use kittiwake::wire::frame::{
    RequestHeader, SIZE_LEN, header_limits, peek_size, split_request, take,
};

const FRAME_BYTES_MAX: usize = 1 << 20;

/// Feeds `data` to the listener's decoding, as a connection's bytes and as one body; panics where a promise is broken.
pub(crate) fn run(data: &[u8]) {
    connection(data);
    body(data);
}

/// Frame after frame, until bytes are missing or the connection would be closed.
fn connection(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(size)) = peek_size(&buffer, FRAME_BYTES_MAX) {
        assert!(size <= FRAME_BYTES_MAX);
        if buffer.len() < SIZE_LEN + size {
            return;
        }
        let rest = buffer.len() - SIZE_LEN - size;
        let frame = take(&mut buffer, size);
        assert_eq!((frame.len(), buffer.len()), (size, rest));
        let Ok((header, body)) = split_request(
            frame.clone(),
            header_limits(FRAME_BYTES_MAX),
            api::is_flexible,
        ) else {
            return;
        };
        let mut fields = frame.clone();
        assert_eq!(header.api_key, fields.get_i16());
        assert_eq!(header.api_version, fields.get_i16());
        assert_eq!(header.correlation_id, fields.get_i32());
        assert!(frame.ends_with(&body));
        if !matches!(api::check(&header, body, size), Some(Ok(()))) {
            return;
        }
    }
}

/// Two bytes choose the API and the version, the rest is the body: random bytes hardly make a header too.
fn body(data: &[u8]) {
    let [api, version, body @ ..] = data else {
        return;
    };
    let apis: Vec<_> = api::served().collect();
    let api = apis[usize::from(*api) % apis.len()];
    let versions: Vec<_> = api.versions.clone().collect();
    let header = RequestHeader {
        api_key: api.key,
        api_version: versions[usize::from(*version) % versions.len()],
        correlation_id: 0,
        client_id: None,
    };
    let checked = api::check(&header, Bytes::copy_from_slice(body), body.len());
    assert!(checked.is_some(), "what is listed is served");
}
