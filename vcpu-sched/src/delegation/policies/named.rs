//! Policies by the names that `--delegate POLICY[:option]` takes. Who adds a policy gives it a name here.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use super::Policy;
use super::cores::Cores;
use super::edf::Edf;
use super::fifo::Fifo;
use super::percpu::PerCpu;
use super::remote::Remote;
use super::shinjuku::Shinjuku;
use super::steal::StealAware;
use crate::cpumask::CpuMask;
use crate::delegation::layout::Region;
use crate::ids::{CpuId, Nanos};
use crate::runqueue::PolicyKind;

/// The names, each with what may follow its colon.
pub const NAMES: [(&str, &str); 7] = [
    ("fifo", ""),
    ("percpu", ""),
    ("shinjuku", "slice in microseconds, 1000 if not given"),
    ("edf", ""),
    ("cores", "bits of a task's number that make no difference to its cookie, 0 if not given: each task for itself"),
    ("steal", ""),
    ("remote", "fair, rr, count or runtime; fair if not given"),
];

/// A name or an option that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyError {
    /// No policy of that name.
    Name,
    /// The policy of this name doesn't take that option.
    Option(&'static str),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => {
                f.write_str("unknown policy for an agent; there are")?;
                NAMES.iter().try_for_each(|(name, _)| write!(f, " {name}"))
            }
            Self::Option(policy) => {
                let option = NAMES.iter().find(|(name, _)| name == policy).map_or("", |(_, option)| option);
                let option = if option.is_empty() { "none" } else { option };
                write!(f, "the policy '{policy}' takes another option: {option}")
            }
        }
    }
}

impl core::error::Error for PolicyError {}

/// A policy with its options, as yet without an enclave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spec {
    /// [`fifo`](super::fifo).
    Fifo,
    /// [`percpu`](super::percpu).
    PerCpu,
    /// [`shinjuku`](super::shinjuku), with its slice in microseconds.
    Shinjuku(u64),
    /// [`edf`](super::edf).
    Edf,
    /// [`cores`](super::cores), with the bits of a task's number that don't count.
    Cores(u32),
    /// [`steal`](super::steal).
    Steal,
    /// [`remote`](super::remote).
    Remote(PolicyKind),
}

impl FromStr for Spec {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, option) = text.split_once(':').map_or((text, None), |(name, option)| (name, Some(option)));
        let (name, _) = NAMES.iter().find(|(known, _)| *known == name).ok_or(PolicyError::Name)?;
        let wrong = PolicyError::Option(name);
        let number = |default: u64| option.map_or(Ok(default), |text| text.parse().map_err(|_| wrong));
        if option.is_some() && matches!(*name, "fifo" | "percpu" | "edf" | "steal") {
            return Err(wrong);
        }
        Ok(match *name {
            "fifo" => Self::Fifo,
            "percpu" => Self::PerCpu,
            "edf" => Self::Edf,
            "steal" => Self::Steal,
            "shinjuku" => match number(Shinjuku::SLICE.0 / 1_000)? {
                us @ 1..=MAX_SLICE_US => Self::Shinjuku(us),
                _ => return Err(wrong),
            },
            "cores" => match number(0)? {
                bits @ 0..64 => Self::Cores(bits as u32),
                _ => return Err(wrong),
            },
            "remote" => Self::Remote(option.map_or(Ok(PolicyKind::Fair), |text| text.parse().map_err(|_| wrong))?),
            _ => return Err(PolicyError::Name),
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fifo => f.write_str("fifo"),
            Self::PerCpu => f.write_str("percpu"),
            Self::Shinjuku(us) => write!(f, "shinjuku:{us}"),
            Self::Edf => f.write_str("edf"),
            Self::Cores(bits) => write!(f, "cores:{bits}"),
            Self::Steal => f.write_str("steal"),
            Self::Remote(kind) => write!(f, "remote:{kind}"),
        }
    }
}

impl Spec {
    /// The policy, for that enclave.
    pub fn make(self, region: &Region<'_>) -> Box<dyn Policy + Send> {
        match self {
            Self::Fifo => Box::new(Fifo::default()),
            Self::PerCpu => Box::new(PerCpu::default()),
            Self::Edf => Box::new(Edf::default()),
            Self::Steal => Box::new(StealAware::default()),
            Self::Shinjuku(us) => Box::new(Shinjuku::new(Nanos::from_micros(us))),
            Self::Cores(bits) => Box::new(Cores::new(cores_of(region), move |gtid| gtid >> bits)),
            Self::Remote(kind) => Box::new(Remote::new(kind)),
        }
    }
}

/// The longest slice: a second.
const MAX_SLICE_US: u64 = 1_000_000;

/// The policy of that name, for that enclave.
///
/// # Errors
/// [`PolicyError`].
pub fn named(text: &str, region: &Region<'_>) -> Result<Box<dyn Policy + Send>, PolicyError> {
    Ok(text.parse::<Spec>()?.make(region))
}

/// The enclave's CPUs by the core that the host says they share; each for itself where nothing is known.
fn cores_of(region: &Region<'_>) -> Vec<Vec<CpuId>> {
    let members: CpuMask = region.cpu_set();
    let mut alone = Vec::new();
    let mut shared: BTreeMap<u32, Vec<CpuId>> = BTreeMap::new();
    for cpu in members.iter() {
        match region.read_host(cpu).and_then(|host| host.core) {
            Some(core) => shared.entry(core).or_default().push(cpu),
            None => alone.push(Vec::from([cpu])),
        }
    }
    shared.into_values().chain(alone).collect()
}
