//! The event stream of Go Sync Kit.

use eventstore_api::{RecordedEvent, Version};
use eventstore_wire::gosync::{cursor, write_event};

/// The most events in a frame of a stream.
const FRAME_EVENTS: usize = 100;

/// A frame ends when it has this many bytes.
const FRAME_BYTES: usize = 4 << 20;

/// The kit's client never gets past a line of 10 MiB. The overhead of an event is less than the difference.
const LONGEST_FRAME: usize = (10 << 20) - 1024;

/// Writes events as frames of a stream. An event that the kit's client cannot accept is mentioned in a comment.
pub(crate) fn frames(events: &[RecordedEvent]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut frame = Vec::new();
    let (mut count, mut last) = (0, Version::ZERO);
    for recorded in events {
        let before = frame.len();
        if count > 0 {
            frame.push(b',');
        }
        write_event(&mut frame, &recorded.event, recorded.version);
        if frame.len() - before > LONGEST_FRAME {
            frame.truncate(before);
            close_frame(&mut out, &mut frame, &mut count, last);
            let version = recorded.version;
            tracing::warn!(%version, "an event is too large for the stream of Go Sync Kit, and was omitted");
            out.extend_from_slice(format!(": version {version} is too large for a frame\n\n").as_bytes());
            continue;
        }
        if count > 0 && frame.len() > FRAME_BYTES {
            let event = frame.split_off(before + 1);
            frame.truncate(before);
            close_frame(&mut out, &mut frame, &mut count, last);
            frame = event;
        }
        (count, last) = (count + 1, recorded.version);
        if count == FRAME_EVENTS || frame.len() > FRAME_BYTES {
            close_frame(&mut out, &mut frame, &mut count, last);
        }
    }
    close_frame(&mut out, &mut frame, &mut count, last);
    out
}

fn close_frame(out: &mut Vec<u8>, frame: &mut Vec<u8>, count: &mut usize, last: Version) {
    if *count > 0 {
        // Line breaks in JSON occur only between its tokens; here they would end the frame.
        frame.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        out.extend_from_slice(b"data: {\"events\":[");
        out.append(frame);
        out.extend_from_slice(format!("],\"next_cursor\":{}}}\n\n", cursor(last)).as_bytes());
        *count = 0;
    }
}

#[cfg(test)]
mod tests {
    use eventstore_api::Event;

    use super::*;

    fn recorded(version: u64, data: &str) -> RecordedEvent {
        let event = Event::builder("T", "a").id(format!("e{version}")).data(data.to_owned()).build().expect("valid");
        RecordedEvent::new(Version::new(version), 1.into(), std::time::SystemTime::UNIX_EPOCH, event)
    }

    /// The versions in each frame; an empty list for a comment.
    fn versions(frames: &[u8]) -> Vec<Vec<u64>> {
        let frames = std::str::from_utf8(frames).expect("text");
        let read = |frame: &str| match frame.strip_prefix("data: ") {
            Some(json) => {
                assert!(!json.contains(['\n', '\r']) && json.len() < 10 << 20);
                let frame: serde_json::Value = serde_json::from_str(json).expect("JSON");
                let events = frame["events"].as_array().expect("events").iter();
                let versions: Vec<u64> =
                    events.map(|event| event["version"].as_str().expect("text").parse().expect("a number")).collect();
                assert_eq!(frame["next_cursor"]["data"], *versions.last().expect("one"));
                versions
            }
            None => {
                assert!(frame.starts_with(": "), "{frame}");
                Vec::new()
            }
        };
        frames.split_terminator("\n\n").map(read).collect()
    }

    #[test]
    fn frames_are_small_and_have_every_event_that_fits_a_line() {
        let some: Vec<_> = (1..=250).map(|version| recorded(version, "[1,\n\r2]")).collect();
        let lens: Vec<_> = versions(&frames(&some)).iter().map(Vec::len).collect();
        assert_eq!(lens, [100, 100, 50]);
        let text = |len: usize| format!("\"{}\"", "x".repeat(len));
        let large = [
            recorded(1, "1"),
            recorded(2, &text(3 << 20)),
            recorded(3, &text(3 << 20)),
            recorded(4, &text(9 << 20)),
            recorded(5, "1"),
            recorded(6, &text(11 << 20)),
            recorded(7, "1"),
        ];
        assert_eq!(versions(&frames(&large)), [vec![1, 2], vec![3], vec![4], vec![5], vec![], vec![7]]);
        assert!(frames(&[]).is_empty());
    }
}
