use super::*;
use crate::Group;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        id: *b"0123456789abcdef",
        number: 3,
        first: 0x0102_0304,
        salt: 0x1122_3344_5566_7788,
        generation: 5,
        chain: 0xaabb_ccdd,
        is_compressed: false,
    }
}

fn summary() -> Summary {
    Summary {
        number: 3,
        first: 7,
        last: 9,
        end: 1000,
        salt: 0x1122_3344_5566_7788,
        anchors: 0,
        blob: 0,
        chain: 0xaabb_ccdd,
        generation: 5,
        anchors_crc: 0,
        blob_crc: 0,
        blocks: 0,
        table_crc: 0,
    }
}

fn tail() -> TailFile {
    TailFile {
        id: *b"0123456789abcdef",
        segment: 3,
        salt: 0x1122_3344_5566_7788,
        offset: 1000,
        frame: 904,
        next: 10,
        synced: 12,
        generation: 5,
        chain: 0xaabb_ccdd,
        anchors: vec![Anchor { number: 0, offset: 104 }],
        blob: b"blob".to_vec(),
    }
}

/// A checksum covers every single bit.
fn check_every_bit<T: PartialEq + std::fmt::Debug>(sound: &[u8], decode: impl Fn(&[u8]) -> Option<T>) {
    assert!(decode(sound).is_some());
    for bit in 0..sound.len() * 8 {
        let mut damaged = sound.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode(&damaged), None, "bit {bit}");
    }
    for len in 0..sound.len() {
        assert_eq!(decode(&sound[..len]), None, "{len} bytes");
    }
}

#[test]
fn a_segment_begins_with_these_bytes() {
    let bytes = segment_header().encode();
    assert_eq!(
        hex(&bytes),
        "4556534c4f470001303132333435363738396162636465660300000000000000040302010000000088776655\
         4433221105000000ddccbbaa00000000101f728b"
    );
    assert_eq!(Head::decode(&bytes), Head::Valid(segment_header()));
    check_every_bit(&bytes, |bytes| match Head::decode(bytes) {
        Head::Valid(header) => Some(header),
        _ => None,
    });
    assert_eq!(Head::decode(&[]), Head::Zeros);
    assert_eq!(Head::decode(&[0; 70]), Head::Zeros);
}

#[test]
fn a_segment_of_a_newer_format_is_no_damage() {
    let sealed = |at: usize, value: u8| {
        let mut bytes = segment_header().encode();
        bytes[at] = value;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        Head::decode(&bytes)
    };
    assert_eq!(sealed(7, 2), Head::Newer);
    assert_eq!(sealed(58, 2), Head::Newer);
    assert_eq!(sealed(58, 1), Head::Valid(SegmentHeader { is_compressed: true, ..segment_header() }));
    assert_eq!(sealed(56, 1), Head::Valid(segment_header()), "a flag that may be ignored");
}

#[test]
fn a_frame_has_these_bytes() {
    let mut group = Group::default();
    group.begin(7);
    group.push(&[b"ab", b"c"]);
    group.push(&[]);
    let (frame, crc) = group.with_frame((9, 5, 0x0102_0304), None, <[u8]>::to_vec);
    assert_eq!(
        hex(&frame),
        "65767346d1fdcaab07000000000000000500000000000000020000001300000004030201d34dc83bb08e5fb7\
         03000000616263b1336190000000800000000000"
    );
    let header = FrameHeader::decode(&frame, 9).expect("sound");
    assert_eq!((header.first, header.synced, header.count, header.len), (7, 5, 2, 19));
    assert_eq!((header.chain, header.crc, header.next(), header.frame_len()), (0x0102_0304, crc, 9, 64));
    check_every_bit(&frame[..FRAME_HEADER], |bytes| FrameHeader::decode(bytes, 9));
    assert_eq!(FrameHeader::decode(&frame, 10), None, "it is of another segment");

    let header = segment_header().encode();
    let (both, _) = group.with_frame((9, 5, 0x0102_0304), Some(&header), <[u8]>::to_vec);
    assert_eq!(both, [header.as_slice(), &frame].concat(), "the first frame of a segment");
}

#[test]
fn a_footer_has_these_bytes() {
    let anchors = [Anchor { number: 0, offset: 104 }, Anchor { number: 2, offset: 5000 }];
    let (summary, footer) = summary().encode(&anchors, b"blob");
    assert_eq!(
        hex(&footer),
        "00000000680000000200000088130000626c6f6207000000000000000900000000000000e803000000000000\
         88776655443322110200000004000000ddccbbaa0500000023d54db6cca57fb0000000000000000045565346\
         4f4f540174000000000000000300000000000000000000000bcfef4b"
    );
    assert_eq!((footer.len() as u64, summary.blob_at()), (summary.len(), 1016));
    let end = &footer[footer.len() - FOOTER_END..];
    assert_eq!(Summary::decode(end, 1000 + summary.len()), Some(summary.clone()));
    assert_eq!(Summary::decode(end, 1001 + summary.len()), None, "it does not end the file");
    check_every_bit(end, |bytes| Summary::decode(bytes, 1000 + summary.len()));
}

#[test]
fn a_checkpoint_has_these_bytes() {
    let bytes = tail().encode();
    assert_eq!(
        hex(&bytes),
        "4556535441494c013031323334353637383961626364656603000000000000008877665544332211e8030000\
         0000000088030000000000000a000000000000000c0000000000000005000000ddccbbaa01000000040000000000000068000000\
         626c6f622e63b402"
    );
    assert_eq!(TailFile::decode(&bytes), Some(tail()));
    check_every_bit(&bytes, TailFile::decode);
}

#[test]
fn names_tell_numbers_and_generations() {
    assert_eq!(segment_name(1, 0), "0000000001-0.seg");
    for (name, parsed) in [
        ("0000000001-0.seg", Some((1, 0))),
        ("12345678901-12.seg", Some((12_345_678_901, 12))),
        ("0000000000-0.seg", None),
        ("1-0.seg", None),
        ("0000000001-00.seg", None),
        ("0000000001-+0.seg", None),
        ("0000000001-0.seg.new", None),
        ("0000000001.seg", None),
    ] {
        assert_eq!(parse_segment_name(name), parsed, "{name}");
    }
}
