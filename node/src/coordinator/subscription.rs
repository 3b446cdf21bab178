//! The one thing the coordinator reads in a member's metadata: the topics it is subscribed to.
//!
//! ```text
//! ConsumerProtocolSubscription   int16 version, int32 count × topic string, … (later versions append)
//! ```
//!
//! Every version begins so (`ConsumerProtocolSubscription.json`).

/// The topics of a consumer's subscription; none when the bytes are something else.
pub(crate) fn topics(metadata: &[u8]) -> Option<Vec<String>> {
    let (version, rest) = metadata.split_first_chunk::<2>()?;
    if i16::from_be_bytes(*version) < 0 {
        return None;
    }
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut topics = Vec::new();
    // A count that lies ends at the last byte: each element takes at least its length.
    for _ in 0..u32::try_from(i32::from_be_bytes(*count)).ok()? {
        let (length, tail) = rest.split_first_chunk::<2>()?;
        let length = usize::try_from(i16::from_be_bytes(*length)).ok()?;
        let (name, tail) = tail.split_at_checked(length)?;
        topics.push(std::str::from_utf8(name).ok()?.to_owned());
        rest = tail;
    }
    Some(topics)
}

#[cfg(test)]
mod tests {
    use super::topics;

    #[test]
    fn reads_topics_of_any_version_and_refuses_what_lies() {
        let bytes = b"\x00\x03\x00\x00\x00\x02\x00\x01a\x00\x02bc\xff\xff\xff\xff";
        assert_eq!(topics(bytes), Some(vec!["a".into(), "bc".into()]));
        assert_eq!(topics(b"\x00\x00\x7f\xff\xff\xff\x00\x01a"), None);
        assert_eq!(topics(b"\x00\x00\xff\xff\xff\xff"), None);
        assert_eq!(topics(b"\xff\xff\x00\x00\x00\x00"), None);
        assert_eq!(topics(b"\x00"), None);
    }
}
