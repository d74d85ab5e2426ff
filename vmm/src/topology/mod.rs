//! How the vCPUs are arranged: sockets, dies, cores and threads, and the nodes that memory belongs to.
//!
//! One [`Topology`] value is made before anything of KVM is touched ([`resolve`]); CPUID, MADT, SRAT, SLIT and PPTT are all
//! derived from it (`crate::boot`), and [`readback`] in the tests proves that they tell the same tree.
//! Invariant: every vCPU has one place, places and APIC ids are unique, and if there are nodes, each vCPU and each byte of
//! memory belongs to exactly one.

pub mod host;
pub mod numa;
pub mod parse;
#[cfg(test)]
pub mod readback;

use std::fmt;

pub use numa::{Node, Numa, NumaError};
pub use parse::{NodeSpec, ShapeSpec};

use crate::config::text::IdSet;

/// A tree in which all siblings are alike: how many of the lower kind each holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sockets of the machine.
    pub sockets: u32,
    /// Dies of a socket.
    pub dies: u32,
    /// Cores of a die.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

impl Shape {
    /// One socket of `n` single-threaded cores. Several sockets would make guests distrust the TSC for nothing.
    pub const fn flat(n: u32) -> Self {
        Self { sockets: 1, dies: 1, cores: n, threads: 1 }
    }

    /// How many threads in all; `None` if that is beyond 32 bits.
    pub fn product(self) -> Option<u32> {
        self.sockets.checked_mul(self.dies)?.checked_mul(self.cores)?.checked_mul(self.threads)
    }
}

/// As `--topology` takes it.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sockets={},dies={},cores={},threads={}", self.sockets, self.dies, self.cores, self.threads)
    }
}

/// Where a vCPU sits; each number counts within the level above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Of the machine.
    pub socket: u32,
    /// Of the socket.
    pub die: u32,
    /// Of the die.
    pub core: u32,
    /// Of the core.
    pub thread: u32,
}

/// What `--topology` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopologyChoice {
    /// The host's own tree.
    Host,
    /// Numbers, some of which may be left out.
    Shape(ShapeSpec),
}

/// Why there is no such tree.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Numbers that contradict each other.
    #[error(
        "--topology {shape} makes {product} vCPUs, but --vcpus is {vcpus}: change one of them, or leave --vcpus out"
    )]
    Product {
        /// The tree.
        shape: Shape,
        /// Its threads.
        product: u64,
        /// `--vcpus`.
        vcpus: u32,
    },
    /// `cores=` can't be found out.
    #[error(
        "--topology leaves cores= to be found, but --vcpus {vcpus} can't be divided by {known} (sockets x dies x threads)"
    )]
    Indivisible {
        /// `--vcpus`.
        vcpus: u32,
        /// The product of what was given.
        known: u64,
    },
    /// Zero, or beyond any machine.
    #[error("{vcpus} vCPUs: 1 to {MAX_VCPUS} are possible (--vcpus, --topology)")]
    Count {
        /// How many were asked for.
        vcpus: u64,
    },
    /// The APIC ids don't fit.
    #[error("--topology {shape} needs APIC ids of {bits} bits, and there are {MAX_APIC_BITS}: use fewer levels")]
    Bits {
        /// The tree.
        shape: Shape,
        /// What it needs.
        bits: u32,
    },
    /// `--topology host`.
    #[error("--topology host: {0}")]
    Host(#[from] host::HostError),
    /// `--topology host` and another `--vcpus`.
    #[error("--topology host is {shape} here, {product} vCPUs, but --vcpus is {vcpus}: leave --vcpus out")]
    HostCount {
        /// The host's tree.
        shape: Shape,
        /// Its threads.
        product: u32,
        /// `--vcpus`.
        vcpus: u32,
    },
    /// `--numa`.
    #[error("--numa: {0}")]
    Numa(#[from] NumaError),
}

/// More than any KVM takes (Linux, arch/x86/include/asm/kvm_host.h: KVM_MAX_VCPUS is at most 4096).
pub const MAX_VCPUS: u32 = 4096;
/// What leaf 0xB can shift by, with room for sockets: more bits than any tree of [`MAX_VCPUS`] needs.
const MAX_APIC_BITS: u32 = 31;

/// The arrangement of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    shape: Shape,
    numa: Option<Numa>,
}

/// Bits that tell `n` things apart.
pub fn bits(n: u32) -> u32 {
    n.max(1).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// A tree without nodes.
    pub fn new(shape: Shape) -> Result<Self, TopologyError> {
        let product = [shape.dies, shape.cores, shape.threads]
            .into_iter()
            .fold(u64::from(shape.sockets), |product, n| product.saturating_mul(n.into()));
        if !(1..=u64::from(MAX_VCPUS)).contains(&product) {
            return Err(TopologyError::Count { vcpus: product });
        }
        let bits = bits(shape.sockets) + bits(shape.dies) + bits(shape.cores) + bits(shape.threads);
        if bits > MAX_APIC_BITS {
            return Err(TopologyError::Bits { shape, bits });
        }
        Ok(Self { shape, numa: None })
    }

    /// The same with nodes, which must cover all vCPUs and all of `memory` once.
    pub fn with_nodes(
        mut self,
        nodes: Vec<Node>,
        distances: &[numa::Distance],
        memory: u64,
    ) -> Result<Self, NumaError> {
        self.numa = Some(Numa::new(nodes, distances, self.vcpus(), memory)?);
        Ok(self)
    }

    /// The tree.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The nodes, if there are any.
    pub fn numa(&self) -> Option<&Numa> {
        self.numa.as_ref()
    }

    /// How many vCPUs.
    pub fn vcpus(&self) -> u32 {
        self.shape.product().unwrap_or(MAX_VCPUS)
    }

    /// Where a vCPU sits. Threads of a core are neighbours in number, then cores, dies, sockets.
    pub fn place(&self, vcpu: u32) -> Place {
        let Shape { dies, cores, threads, .. } = self.shape;
        let (core, thread) = (vcpu / threads, vcpu % threads);
        let (die, core) = (core / cores, core % cores);
        Place { socket: die / dies, die: die % dies, core, thread }
    }

    /// Bits of an APIC id below the core's number.
    pub fn thread_bits(&self) -> u32 {
        bits(self.shape.threads)
    }

    /// Bits of an APIC id below the die's number.
    pub fn die_shift(&self) -> u32 {
        self.thread_bits() + bits(self.shape.cores)
    }

    /// Bits of an APIC id below the socket's number.
    pub fn socket_shift(&self) -> u32 {
        self.die_shift() + bits(self.shape.dies)
    }

    /// Threads of a socket.
    pub fn per_socket(&self) -> u32 {
        self.vcpus() / self.shape.sockets
    }

    /// The APIC id of a vCPU, which is KVM's vCPU id too: each level has the bits that its count needs (Intel SDM vol. 3A,
    /// 9.9.3), so that counts that aren't powers of two leave gaps.
    pub fn apic_id(&self, vcpu: u32) -> u32 {
        let Place { socket, die, core, thread } = self.place(vcpu);
        socket << self.socket_shift() | die << self.die_shift() | core << self.thread_bits() | thread
    }

    /// The largest of all.
    pub fn max_apic_id(&self) -> u32 {
        self.apic_id(self.vcpus() - 1)
    }
}

/// Makes the tree that `--vcpus`, `--topology`, `--numa` and `--memory` describe together.
pub fn resolve(
    vcpus: Option<u32>,
    choice: Option<TopologyChoice>,
    nodes: &[NodeSpec],
    memory: u64,
) -> Result<Topology, TopologyError> {
    let topology = match choice {
        None => Topology::new(Shape::flat(vcpus.unwrap_or(1)))?,
        Some(TopologyChoice::Shape(spec)) => Topology::new(spec.complete(vcpus)?)?,
        Some(TopologyChoice::Host) => {
            let mirror = host::Mirror::read(host::SYSFS.as_ref())?;
            let topology = Topology::new(mirror.shape)?;
            if let Some(vcpus) = vcpus.filter(|vcpus| *vcpus != topology.vcpus()) {
                return Err(TopologyError::HostCount { shape: mirror.shape, product: topology.vcpus(), vcpus });
            }
            if nodes.is_empty() && mirror.nodes.len() > 1 {
                let (nodes, distances) = mirror.nodes(memory);
                return Ok(topology.with_nodes(nodes, &distances, memory)?);
            }
            topology
        }
    };
    if nodes.is_empty() {
        return Ok(topology);
    }
    let (nodes, distances) = numa::from_specs(nodes)?;
    Ok(topology.with_nodes(nodes, &distances, memory)?)
}

/// Numbers below `n`, for messages.
fn all(n: u32) -> IdSet {
    IdSet::below(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topology(sockets: u32, dies: u32, cores: u32, threads: u32) -> Topology {
        Topology::new(Shape { sockets, dies, cores, threads }).unwrap()
    }

    #[test]
    fn counts_that_are_no_powers_of_two_leave_gaps() {
        let odd = topology(2, 1, 3, 2);
        let ids: Vec<u32> = (0..12).map(|vcpu| odd.apic_id(vcpu)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(odd.place(7), Place { socket: 1, die: 0, core: 0, thread: 1 });
    }

    #[test]
    fn the_default_is_one_socket() {
        let flat = resolve(Some(6), None, &[], 0).unwrap();
        assert_eq!((flat.shape(), flat.max_apic_id()), (Shape::flat(6), 5));
    }

    #[test]
    fn vcpus_and_topology_must_agree() {
        let choice = |text: &str| Some(parse::topology(text).unwrap());
        let shape = |vcpus, text| resolve(vcpus, choice(text), &[], 0).map(|t| t.shape().to_string());
        assert_eq!(shape(None, "sockets=2,cores=3").unwrap(), "sockets=2,dies=1,cores=3,threads=1");
        assert_eq!(shape(Some(12), "sockets=2,threads=2").unwrap(), "sockets=2,dies=1,cores=3,threads=2");
        let error = shape(Some(4), "sockets=2,cores=3").unwrap_err().to_string();
        assert!(error.contains("sockets=2,dies=1,cores=3,threads=1 makes 6 vCPUs, but --vcpus is 4"), "{error}");
        let error = shape(Some(5), "sockets=2").unwrap_err().to_string();
        assert!(error.contains("--vcpus 5 can't be divided by 2"), "{error}");
        let error = shape(None, "sockets=60000,dies=60000,cores=60000,threads=60000").unwrap_err().to_string();
        assert!(error.contains("1 to 4096 are possible"), "{error}");
        assert!(matches!(resolve(Some(0), None, &[], 0), Err(TopologyError::Count { vcpus: 0 })));
    }

    proptest! {
        #[test]
        fn ids_are_unique_ascending_and_split_back(
            sockets in 1u32..9, dies in 1u32..5, cores in 1u32..14, threads in 1u32..5,
        ) {
            let tree = topology(sockets, dies, cores, threads);
            let mut before = None;
            for vcpu in 0..tree.vcpus() {
                let id = tree.apic_id(vcpu);
                prop_assert!(before < Some(id));
                before = Some(id);
                let place = tree.place(vcpu);
                prop_assert_eq!(id >> tree.socket_shift(), place.socket);
                prop_assert_eq!(id & ((1 << tree.thread_bits()) - 1), place.thread);
                prop_assert!(place.die < dies && place.core < cores && place.thread < threads);
            }
        }
    }
}
