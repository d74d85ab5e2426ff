//! A thread of the VMM's for an enclave: the agent itself, or who keeps the door for one. Ended when dropped.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::agent::Desk;
use super::door::{Door, Visits};
use super::{Bell, Figures};
use crate::sandbox::{self, Kind};

/// See the module's text.
#[derive(Debug)]
pub struct Thread {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
    told: Told,
}

/// What there is to tell at the end.
#[derive(Debug, Clone)]
pub enum Told {
    /// What the VMM's agent did.
    Agent(Arc<Figures>),
    /// Who came through the door.
    Visits(Arc<Visits>),
}

impl Told {
    /// One `stats:` line.
    pub fn render(&self) -> String {
        match self {
            Self::Agent(figures) => figures.render(),
            Self::Visits(visits) => visits.render(),
        }
    }
}

impl Thread {
    /// The VMM's own agent, on a host CPU of its own if it has one. It waits for the guest's enclave first.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn decide(desk: Desk) -> io::Result<Self> {
        let figures = Arc::new(Figures::default());
        let (bell, noted, cpu) = (desk.bell.clone(), figures.clone(), desk.cpu);
        Self::start(
            "agent",
            Kind::Agent,
            bell,
            Told::Agent(figures),
            move || {
                if let Err(error) = desk.work(&noted) {
                    log::error!("--delegate: {error}");
                }
            },
            cpu,
        )
    }

    /// The door for agents' processes. It is opened when the guest has its enclave.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn keep(door: Door) -> io::Result<Self> {
        let visits = door.visits.clone();
        Self::start(
            "door",
            Kind::Door,
            door.bell.clone(),
            Told::Visits(visits),
            move || {
                if let Err(error) = door.keep() {
                    log::error!("--delegate: {error}");
                }
            },
            None,
        )
    }

    fn start(
        name: &'static str,
        kind: Kind,
        bell: Arc<Bell>,
        told: Told,
        work: impl FnOnce() + Send + 'static,
        cpu: Option<u32>,
    ) -> io::Result<Self> {
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            if let Some(cpu) = cpu {
                seat(cpu);
            }
            match sandbox::enter(kind) {
                Ok(()) => work(),
                Err(error) => log::error!("--delegate: nobody decides: {error}"),
            }
        })?;
        Ok(Self { bell, thread: Some(thread), told })
    }

    /// What there is to tell.
    pub fn told(&self) -> Told {
        self.told.clone()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.bell.end();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the hook; the guest's kernel has gone on by itself.
            let _ = thread.join();
        }
    }
}

/// Gives the calling thread a host CPU.
pub fn seat(cpu: u32) {
    let mut set = rustix::thread::CpuSet::new();
    let fits = (cpu as usize) < rustix::thread::CpuSet::MAX_CPU;
    if fits {
        set.set(cpu as usize);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        log::warn!("the agent can't have CPU {cpu}: {error}; it runs where the host wants");
    }
}
