//! What a guest shows of its tasks: any memory gives a view or an error. The first two bytes are the page that it tells.

use std::sync::{Arc, OnceLock};

use taskvisor::guestview::{Reader, Told};
use taskvisor::memory::{self, Ram};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of memory that are written anew for each input.
const SHOWN: usize = 0x8000;

/// One input.
pub fn run(bytes: &[u8]) {
    static RAM: OnceLock<Ram> = OnceLock::new();
    let ram = RAM.get_or_init(|| memory::allocate(16 << 20, 46).expect("16 MiB"));
    let Some((page, bytes)) = bytes.split_first_chunk::<2>() else { return };
    let mut shown = vec![0; SHOWN];
    shown.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    ram.write_slice(&shown, GuestAddress(0)).expect("it fits");
    let told = Told::default();
    told.set(u16::from_le_bytes(*page).into());
    if let Ok(snapshot) = Reader::new(ram.clone(), Arc::new(told), 1_000_000).snapshot() {
        assert!(snapshot.tasks.iter().all(|task| !task.name.chars().any(char::is_control)));
    }
}
