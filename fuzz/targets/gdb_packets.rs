//! What a debugger sends: bytes become packets, packets become commands or nothing.

use taskvisor::debug::command;
use taskvisor::debug::packet::{Decoder, Input, MAX_PACKET, encode};

/// One input.
pub fn run(bytes: &[u8]) {
    let mut decoder = Decoder::default();
    for input in bytes.iter().filter_map(|byte| decoder.push(*byte)) {
        if let Input::Packet(data) = input {
            assert!(data.len() <= MAX_PACKET);
            // Known or not.
            let _ = command::parse(&data);
        }
    }
    // A fuzzer seldom finds a checksum: the same bytes as the data of a packet that is right.
    let mut packet = Vec::new();
    encode(bytes, &mut packet);
    let mut decoder = Decoder::default();
    let found: Vec<_> = packet.iter().filter_map(|byte| decoder.push(*byte)).collect();
    if bytes.len() <= MAX_PACKET {
        assert_eq!(found, [Input::Packet(bytes.to_vec())]);
    }
    let _ = command::parse(bytes);
}
