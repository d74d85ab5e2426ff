//! Framing of the remote protocol: `$data#checksum`, acknowledgements, Ctrl-C.
//!
//! [`Decoder`] takes whatever bytes a client sends, [`encode`] makes packets. Source: gdb's manual, "Remote Protocol",
//! "Overview" and "Interrupts". Invariants: no input makes the decoder fail or keep more than [`MAX_PACKET`] bytes; what it
//! gives out has a right checksum.

/// The longest packet, escapes undone, that is accepted. Clients are told, and keep to it.
pub const MAX_PACKET: usize = 64 << 10;
/// Ctrl-C between packets.
const INTERRUPT: u8 = 3;
/// The next byte is XORed with this.
const ESCAPE: u8 = b'}';
const ESCAPE_XOR: u8 = 0x20;

/// What was found in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A packet's data, escapes undone.
    Packet(Vec<u8>),
    /// A packet that is damaged or too long: ask for it again.
    Damaged,
    /// Ctrl-C.
    Interrupt,
    /// `+`: it has got our last packet.
    Ack,
    /// `-`: it wants our last packet again.
    Nack,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Between,
    Data,
    Escaped,
    /// Checksum digits: the first one, once it is there.
    Checksum(Option<u8>),
}

/// Takes a stream of bytes apart.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    data: Vec<u8>,
    sum: u8,
    too_long: bool,
}

impl Decoder {
    /// The next byte.
    pub fn push(&mut self, byte: u8) -> Option<Input> {
        match (&self.state, byte) {
            (State::Between, b'+') => return Some(Input::Ack),
            (State::Between, b'-') => return Some(Input::Nack),
            (State::Between, INTERRUPT) => return Some(Input::Interrupt),
            (State::Between, b'$') => self.begin(),
            // Noise: gdb and stubs ignore it.
            (State::Between, _) => {}
            // A packet that was cut short, and a new one.
            (State::Data | State::Escaped, b'$') => self.begin(),
            (State::Data | State::Escaped, b'#') => self.state = State::Checksum(None),
            (State::Data, ESCAPE) => {
                self.sum = self.sum.wrapping_add(byte);
                self.state = State::Escaped;
            }
            (State::Data, _) => self.keep(byte, byte),
            (State::Escaped, _) => {
                self.keep(byte, byte ^ ESCAPE_XOR);
                self.state = State::Data;
            }
            (State::Checksum(None), _) => self.state = State::Checksum(Some(byte)),
            (State::Checksum(Some(first)), _) => {
                let sum = digit(*first).zip(digit(byte)).map(|(high, low)| high << 4 | low);
                self.state = State::Between;
                let data = std::mem::take(&mut self.data);
                let good = sum == Some(self.sum) && !self.too_long;
                return Some(if good { Input::Packet(data) } else { Input::Damaged });
            }
        }
        None
    }

    fn begin(&mut self) {
        self.data.clear();
        (self.state, self.sum, self.too_long) = (State::Data, 0, false);
    }

    fn keep(&mut self, raw: u8, byte: u8) {
        self.sum = self.sum.wrapping_add(raw);
        if self.data.len() < MAX_PACKET {
            self.data.push(byte);
        } else {
            self.too_long = true;
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// Appends a packet with this data to `out`. What has a meaning in the framing is escaped, so data may be binary.
pub fn encode(data: &[u8], out: &mut Vec<u8>) {
    let mut sum = 0u8;
    let mut put = |out: &mut Vec<u8>, byte: u8| {
        sum = sum.wrapping_add(byte);
        out.push(byte);
    };
    out.reserve(data.len() + 4);
    out.push(b'$');
    for &byte in data {
        if matches!(byte, b'$' | b'#' | b'*' | ESCAPE) {
            put(out, ESCAPE);
            put(out, byte ^ ESCAPE_XOR);
        } else {
            put(out, byte);
        }
    }
    out.extend_from_slice(format!("#{sum:02x}").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Vec<Input> {
        let mut decoder = Decoder::default();
        bytes.iter().filter_map(|byte| decoder.push(*byte)).collect()
    }

    #[test]
    fn packets_acks_and_interrupts_are_told_apart() {
        assert_eq!(
            decode(b"+$g#67noise-\x03$m0,4#fd"),
            [Input::Ack, Input::Packet(b"g".to_vec()), Input::Nack, Input::Interrupt, Input::Packet(b"m0,4".to_vec())]
        );
    }

    #[test]
    fn damage_is_seen_and_survived() {
        assert_eq!(decode(b"$g#00$g#67"), [Input::Damaged, Input::Packet(b"g".to_vec())]);
        assert_eq!(decode(b"$g#zz"), [Input::Damaged]);
        assert_eq!(decode(b"$cut sho$g#67"), [Input::Packet(b"g".to_vec())]);
        let long = [b"$".to_vec(), vec![b'a'; MAX_PACKET + 1], b"#00$g#67".to_vec()].concat();
        assert_eq!(decode(&long), [Input::Damaged, Input::Packet(b"g".to_vec())]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(data in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut bytes = Vec::new();
            encode(&data, &mut bytes);
            prop_assert_eq!(decode(&bytes), [Input::Packet(data)]);
        }

        #[test]
        fn noise_does_no_harm(noise in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'$'), Just(b'#'), Just(b'}')], 0..600)) {
            for input in decode(&noise) {
                if let Input::Packet(data) = input {
                    prop_assert!(data.len() <= MAX_PACKET);
                }
            }
            // Whatever came before, a packet is found.
            let mut decoder = Decoder::default();
            noise.iter().for_each(|byte| drop(decoder.push(*byte)));
            let found: Vec<_> = b"##00$?#3f$?#3f".iter().filter_map(|byte| decoder.push(*byte)).collect();
            prop_assert_eq!(found.last(), Some(&Input::Packet(b"?".to_vec())));
        }
    }
}
