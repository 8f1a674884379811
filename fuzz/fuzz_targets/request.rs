#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| eventstore_wire::fuzzing::request(input));
