use super::*;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn key() -> OffsetKey {
    OffsetKey {
        group: "g".into(),
        topic: "tp".into(),
        partition: 7,
    }
}

fn offset() -> CommittedOffset {
    CommittedOffset {
        offset: 42,
        leader_epoch: 3,
        metadata: "m".into(),
        commit_timestamp_ms: 0x0123,
        expire_timestamp_ms: -1,
        topic_id: TopicId::from_bytes(
            *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
        ),
    }
}

fn group() -> GroupMetadata {
    GroupMetadata {
        protocol_type: "consumer".into(),
        generation: 5,
        protocol: Some("range".into()),
        leader: Some("m1".into()),
        state_timestamp_ms: 9,
        members: vec![MemberMetadata {
            member_id: "m1".into(),
            instance_id: Some("i".into()),
            client_id: "c".into(),
            client_host: "/h".into(),
            rebalance_timeout_ms: 300,
            session_timeout_ms: 100,
            subscription: Bytes::from_static(b"\x01\x02"),
            assignment: Bytes::from_static(b"\x03"),
        }],
    }
}

#[test]
fn an_offset_commit_is_laid_out_as_kafka_lays_it_out() {
    let record = OffsetsRecord::Offset(key(), Some(offset()));
    let (bytes, value) = encode(&record).unwrap();
    assert_eq!(bytes, unhex("0001 0001 67 0002 7470 00000007"));
    assert_eq!(
        value.as_deref(),
        Some(&*unhex(
            "0004 000000000000002a 00000003 02 6d 0000000000000123
             01 00 10 000102030405060708090a0b0c0d0e0f"
        ))
    );
    assert_eq!(decode(Some(&bytes), value.as_deref()), Ok(Ok(record)));
}

#[test]
fn group_metadata_is_laid_out_as_kafka_lays_it_out() {
    let record = OffsetsRecord::Group("grp".into(), Some(group()));
    let (bytes, value) = encode(&record).unwrap();
    assert_eq!(bytes, unhex("0002 0003 677270"));
    assert_eq!(
        value.as_deref(),
        Some(&*unhex(
            "0003 0008 636f6e73756d6572 00000005 0005 72616e6765 0002 6d31 0000000000000009 00000001
             0002 6d31 0001 69 0001 63 0002 2f68 0000012c 00000064 00000002 0102 00000001 03"
        ))
    );
    assert_eq!(decode(Some(&bytes), value.as_deref()), Ok(Ok(record)));
}

#[test]
fn an_empty_group_has_null_protocol_and_leader() {
    let record = OffsetsRecord::Group(
        "g".into(),
        Some(GroupMetadata {
            protocol: None,
            leader: None,
            members: Vec::new(),
            ..group()
        }),
    );
    let (key, value) = encode(&record).unwrap();
    assert_eq!(
        value.as_deref(),
        Some(&*unhex(
            "0003 0008 636f6e73756d6572 00000005 ffff ffff 0000000000000009 00000000"
        ))
    );
    assert_eq!(decode(Some(&key), value.as_deref()), Ok(Ok(record)));
}

#[test]
fn tombstones_have_no_value() {
    for record in [
        OffsetsRecord::Offset(key(), None),
        OffsetsRecord::Group("g".into(), None),
    ] {
        let (key, value) = encode(&record).unwrap();
        assert_eq!(value, None);
        assert_eq!(decode(Some(&key), None), Ok(Ok(record)));
    }
}

#[test]
fn older_and_newer_offset_values_are_read() {
    let key = unhex("0000 0001 67 0002 7470 00000007");
    let read = |value: &str| match decode(Some(&key), Some(&unhex(value))) {
        Ok(Ok(OffsetsRecord::Offset(_, Some(offset)))) => offset,
        other => panic!("{other:?}"),
    };
    let without_id = CommittedOffset {
        topic_id: None,
        ..offset()
    };
    let without_epoch = CommittedOffset {
        leader_epoch: -1,
        ..without_id.clone()
    };
    assert_eq!(
        read("0000 000000000000002a 0001 6d 0000000000000123"),
        without_epoch
    );
    assert_eq!(
        read("0001 000000000000002a 0001 6d 0000000000000123 0000000000000456"),
        CommittedOffset {
            expire_timestamp_ms: 0x456,
            ..without_epoch.clone()
        }
    );
    assert_eq!(
        read("0002 000000000000002a 0001 6d 0000000000000123"),
        without_epoch
    );
    assert_eq!(
        read("0003 000000000000002a 00000003 0001 6d 0000000000000123"),
        without_id
    );
    // Flexible: compact string, tagged fields, none of which need be there; a zero id is none.
    assert_eq!(
        read("0004 000000000000002a 00000003 02 6d 0000000000000123 00"),
        without_id
    );
    assert_eq!(
        read(
            "0004 000000000000002a 00000003 02 6d 0000000000000123
             02 00 10 00000000000000000000000000000000 07 01 ff"
        ),
        without_id
    );
    assert_eq!(
        read(
            "0004 000000000000002a 00000003 02 6d 0000000000000123
             01 00 10 000102030405060708090a0b0c0d0e0f"
        ),
        offset()
    );
}

#[test]
fn older_and_newer_group_values_are_read() {
    let key = unhex("0002 0001 67");
    let read = |value: &str| match decode(Some(&key), Some(&unhex(value))) {
        Ok(Ok(OffsetsRecord::Group(_, Some(group)))) => group,
        other => panic!("{other:?}"),
    };
    let mut dynamic = group();
    dynamic.members[0].instance_id = None;
    assert_eq!(
        read(
            "0002 0008 636f6e73756d6572 00000005 0005 72616e6765 0002 6d31 0000000000000009 00000001
             0002 6d31 0001 63 0002 2f68 0000012c 00000064 00000002 0102 00000001 03"
        ),
        dynamic
    );
    dynamic.state_timestamp_ms = -1;
    dynamic.members[0].rebalance_timeout_ms = 100;
    assert_eq!(
        read(
            "0000 0008 636f6e73756d6572 00000005 0005 72616e6765 0002 6d31 00000001
             0002 6d31 0001 63 0002 2f68 00000064 00000002 0102 00000001 03"
        ),
        dynamic
    );
    assert_eq!(
        read(
            "0004 09 636f6e73756d6572 00000005 06 72616e6765 03 6d31 0000000000000009 02
             03 6d31 02 69 02 63 03 2f68 0000012c 00000064 03 0102 02 03 00 00"
        ),
        group()
    );
}

#[test]
fn a_key_of_an_unknown_version_is_somebody_elses() {
    assert_eq!(decode(Some(b"\x00\x03\x00\x01g"), None), Ok(Err(3)));
}

#[test]
fn a_record_cut_anywhere_is_damaged_and_nothing_worse() {
    for record in [
        OffsetsRecord::Offset(key(), Some(offset())),
        OffsetsRecord::Group("g".into(), Some(group())),
    ] {
        let (key, value) = encode(&record).unwrap();
        let value = value.unwrap();
        for end in 0..key.len() {
            assert!(matches!(
                decode(Some(&key[..end]), Some(&value)),
                Err(DecodeError::Damaged(_))
            ));
        }
        for end in 0..value.len() {
            assert!(matches!(
                decode(Some(&key), Some(&value[..end])),
                Err(DecodeError::Damaged(_))
            ));
        }
    }
    assert_eq!(decode(None, None), Err(DecodeError::NoKey));
    let offset_key = encode(&OffsetsRecord::Offset(key(), None)).unwrap().0;
    assert_eq!(
        decode(Some(&offset_key), Some(b"\x00\x05")),
        Err(DecodeError::UnknownValueVersion(5))
    );
}

#[test]
fn counts_and_lengths_that_lie_are_damage() {
    let key = encode(&OffsetsRecord::Group("g".into(), None)).unwrap().0;
    for value in [
        // 2³¹−1 members, and none there
        "0003 0001 63 00000005 ffff ffff 0000000000000009 7fffffff",
        // −2 members
        "0003 0001 63 00000005 ffff ffff 0000000000000009 fffffffe",
        // a protocol type of 32 KiB, and of length −2
        "0003 7fff 63",
        "0003 fffe 63",
        // an endless varint
        "0004 ffffffffffffff",
    ] {
        assert!(matches!(
            decode(Some(&key), Some(&unhex(value))),
            Err(DecodeError::Damaged(_))
        ));
    }
}

#[test]
fn a_topic_id_of_another_length_is_damage() {
    let key = encode(&OffsetsRecord::Offset(key(), None)).unwrap().0;
    let value = unhex("0004 000000000000002a 00000003 02 6d 0000000000000123 01 00 02 0001");
    assert_eq!(
        decode(Some(&key), Some(&value)),
        Err(DecodeError::Damaged("topic id"))
    );
}

#[test]
fn long_and_missing_fields_of_an_offset_commit_survive() {
    let value = CommittedOffset {
        metadata: "x".repeat(STRING_BYTES_MAX).into(),
        topic_id: None,
        ..offset()
    };
    let record = OffsetsRecord::Offset(key(), Some(value));
    let (key, value) = encode(&record).unwrap();
    assert_eq!(decode(Some(&key), value.as_deref()), Ok(Ok(record)));
}

#[test]
fn what_does_not_fit_is_refused() {
    let record = OffsetsRecord::Group("x".repeat(STRING_BYTES_MAX + 1).into(), None);
    assert_eq!(
        encode(&record),
        Err(EncodeError::StringTooLong(STRING_BYTES_MAX + 1))
    );
}

#[test]
fn an_offset_that_expires_is_written_in_the_version_that_can_say_so() {
    let record = OffsetsRecord::Offset(
        key(),
        Some(CommittedOffset {
            leader_epoch: -1,
            expire_timestamp_ms: 0x456,
            topic_id: None,
            ..offset()
        }),
    );
    let (key, value) = encode(&record).unwrap();
    assert_eq!(
        value.as_deref(),
        Some(&*unhex(
            "0001 000000000000002a 0001 6d 0000000000000123 0000000000000456"
        ))
    );
    assert_eq!(decode(Some(&key), value.as_deref()), Ok(Ok(record)));
}
