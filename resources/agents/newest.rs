//! A scheduling agent in Rust, with a policy of its own: whoever became ready last gets the next idle CPU, as what it works on is most
//! likely still in a cache. docs/delegation.md has the rules; `fifo.c` is one in C.
//!
//! ```console
//! $ taskvisor run --delegate external:/tmp/agent.sock -- PROGRAM &
//! $ newest /tmp/agent.sock
//! ```
//! It needs the crates `taskvisor` and `vcpu-sched`.

use std::path::Path;
use std::process::ExitCode;

use taskvisor::delegate::Figures;
use taskvisor::delegate::attach::{AttachError, Attached};
use vcpu_sched::delegation::policies::{Decisions, Policy, Ready, View};

/// Tasks that may run, by the number of their status word; the newest at the end.
#[derive(Debug, Default)]
struct Newest(Vec<u32>);

impl Policy for Newest {
    fn enqueue(&mut self, _view: &View<'_>, slot: u32, why: Ready) {
        match why {
            // It has just had its turn.
            Ready::Yielded => self.0.insert(0, slot),
            _ => self.0.push(slot),
        }
    }

    fn dequeue(&mut self, _view: &View<'_>, slot: u32) {
        self.0.retain(|other| *other != slot);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        for cpu in view.idle.iter() {
            let Some(slot) = self.0.pop() else { break };
            decisions.run(cpu, slot);
        }
    }
}

fn main() -> ExitCode {
    let Some(socket) = std::env::args_os().nth(1) else {
        eprintln!("give the socket of taskvisor run --delegate external:SOCKET");
        return ExitCode::FAILURE;
    };
    let figures = Figures::default();
    let ended = decide(Path::new(&socket), &figures);
    eprint!("{}", figures.render());
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Until the guest ends; asleep while there is nothing to be decided.
fn decide(socket: &Path, figures: &Figures) -> Result<(), AttachError> {
    Attached::connect(socket)?.decide(|_| Newest::default(), true, figures)
}
