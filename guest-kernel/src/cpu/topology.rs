//! Where each CPU sits: package, die, core and thread, the caches it shares, the memory node it belongs to.
//!
//! Read once at boot: the widths of an APIC id's fields and the caches from CPUID of the boot CPU (they are the same on all),
//! nodes from SRAT and SLIT. /proc/cpuinfo, /sys and the scheduler's masks are made from it. What a broken table doesn't tell
//! is flat: one package of cores, one node.
//! Sources: Intel SDM vol. 2A, CPUID, table 3-8; AMD APM vol. 3, E.4; ACPI 6.5, 5.2.16 and 5.2.17.

use alloc::vec::Vec;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;
use vcpu_sched::topology::{Seat, Topology};

use crate::arch::instr::cpuid;
use crate::boot::acpi;
use crate::sync::BootCell;

/// Level types of leaves 0xB and 0x1F.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// The most subleaves that are looked at, of levels and of caches; real CPUs have up to five.
const MAX_SUBLEAVES: u32 = 8;
/// The most nodes that are taken.
const MAX_NODES: usize = 64;
/// A node to itself (ACPI 6.5, 5.2.17), and to another where the SLIT is silent.
const LOCAL: u8 = 10;
const REMOTE: u8 = 20;

/// Where the fields of an APIC id begin; threads begin at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shifts {
    core: u32,
    die: u32,
    package: u32,
}

/// A CPU's place; each number counts within the level above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the machine.
    pub package: u32,
    /// Of the package.
    pub die: u32,
    /// Of the package too, as Linux counts cores.
    pub core: u32,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Data.
    Data,
    /// Instructions.
    Instruction,
    /// Both.
    Unified,
}

/// One kind of cache; every CPU has it, and shares it with those whose APIC ids are equal from `shift` on.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u32,
    /// What it holds.
    pub kind: CacheKind,
    /// Bytes in a line.
    pub line: u32,
    /// Lines that share a tag.
    pub partitions: u32,
    /// Lines in a set.
    pub ways: u32,
    /// Sets.
    pub sets: u32,
    shift: u32,
}

impl Cache {
    /// Bytes in all.
    pub fn size(&self) -> u64 {
        u64::from(self.line) * u64::from(self.partitions) * u64::from(self.ways) * u64::from(self.sets)
    }
}

/// A memory node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// As the SRAT numbers it.
    pub domain: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// All that was read.
#[derive(Default)]
struct Machine {
    shifts: Shifts,
    caches: Vec<Cache>,
    nodes: Vec<Node>,
    /// Node index by APIC id.
    node_of: Vec<(u32, usize)>,
    /// Row by row, by domain number.
    slit: Vec<u8>,
    scheduler: Topology,
}

static MACHINE: BootCell<Machine> = BootCell::new();
/// Before [`init`].
static FLAT: Machine = Machine {
    shifts: Shifts { core: 0, die: 31, package: 31 },
    caches: Vec::new(),
    nodes: Vec::new(),
    node_of: Vec::new(),
    slit: Vec::new(),
    scheduler: Topology::flat(),
};

fn machine() -> &'static Machine {
    MACHINE.get().unwrap_or(&FLAT)
}

/// Reads CPUID and the tables; `apic_ids` are those of the MADT. Boot CPU, once, while it is the only one.
pub fn init(rsdp: u64, apic_ids: &[u32]) {
    let mut machine = Machine { shifts: shifts(), caches: caches(), ..Machine::default() };
    if let Some(srat) = acpi::find(rsdp, b"SRAT") {
        read_srat(&srat, &mut machine);
    }
    if !machine.nodes.is_empty()
        && let Some(slit) = acpi::find(rsdp, b"SLIT")
    {
        machine.slit = slit.get(44..).map(<[u8]>::to_vec).unwrap_or_default();
    }
    // CPUs are numbered as `bring_up` does it: the boot CPU, then the others in the MADT's order.
    let boot = super::this().apic_id();
    let others = apic_ids.iter().copied().filter(|id| *id != boot);
    let seats: Vec<Seat> = core::iter::once(boot).chain(others).map(|id| machine.seat(id)).collect();
    machine.scheduler = Topology::new(&seats);
    MACHINE.set(machine);
}

/// From leaf 0x1F, else 0xB, else leaves 1 and 4.
fn shifts() -> Shifts {
    let max = cpuid(0, 0).0;
    let found = [0x1f, 0xb].into_iter().filter(|leaf| *leaf <= max).find_map(levels);
    found.unwrap_or_else(|| legacy(max))
}

fn levels(leaf: u32) -> Option<Shifts> {
    let mut shifts = Shifts::default();
    let mut die = None;
    for index in 0..MAX_SUBLEAVES {
        let (a, b, c, _) = cpuid(leaf, index);
        let kind = c >> 8 & 0xff;
        if kind == 0 || b & 0xffff == 0 {
            break;
        }
        let shift = (a & 0x1f).max(shifts.package);
        match kind {
            LEVEL_THREAD => shifts.core = shift,
            LEVEL_CORE => die = Some(shift),
            // Modules and tiles are no level of ours: cores of the die.
            _ => {}
        }
        shifts.package = shift;
    }
    shifts.die = die?;
    Some(shifts)
}

/// Ids of a package from leaf 1, of its cores from leaf 4.
fn legacy(max: u32) -> Shifts {
    let bits = |n: u32| n.max(1).next_power_of_two().trailing_zeros();
    let (_, b, _, d) = cpuid(1, 0);
    // EDX bit 28: EBX[23:16] is valid.
    let package = if d & 1 << 28 != 0 { bits(b >> 16 & 0xff) } else { 0 };
    let cores = if max >= 4 { bits((cpuid(4, 0).0 >> 26) + 1) } else { package };
    Shifts { core: package.saturating_sub(cores), die: package, package }
}

/// From leaf 4, or 0x8000001D where the CPU tells them there.
fn caches() -> Vec<Cache> {
    let intel = if cpuid(0, 0).0 >= 4 { caches_of(4) } else { Vec::new() };
    if intel.is_empty() && cpuid(0x8000_0000, 0).0 >= 0x8000_001d { caches_of(0x8000_001d) } else { intel }
}

fn caches_of(leaf: u32) -> Vec<Cache> {
    let subleaves = (0..MAX_SUBLEAVES).map(|index| cpuid(leaf, index));
    let caches = subleaves.map_while(|(a, b, c, _)| {
        let kind = match a & 0x1f {
            1 => CacheKind::Data,
            2 => CacheKind::Instruction,
            3 => CacheKind::Unified,
            _ => return None,
        };
        let sharing = (a >> 14 & 0xfff) + 1;
        Some(Cache {
            level: a >> 5 & 7,
            kind,
            line: (b & 0xfff) + 1,
            partitions: (b >> 12 & 0x3ff) + 1,
            ways: (b >> 22) + 1,
            sets: c.saturating_add(1),
            shift: sharing.next_power_of_two().trailing_zeros(),
        })
    });
    caches.collect()
}

fn read_srat(table: &[u8], machine: &mut Machine) {
    let mut at = 48;
    while let Some(&[kind, len]) = table.get(at..at + 2) {
        let Some(entry) = table.get(at..at + usize::from(len)).filter(|e| e.len() >= 2) else { break };
        at += usize::from(len);
        let word = |at| acpi::u32_at(entry, at).unwrap_or(0);
        // Flags bit 0: enabled.
        match kind {
            0 if entry.len() >= 16 && word(4) & 1 != 0 => {
                let domain = u32::from(entry[2]) | word(8) & 0xffff_ff00;
                machine.add_cpu(u32::from(entry[3]), domain);
            }
            2 if entry.len() >= 24 && word(12) & 1 != 0 => machine.add_cpu(word(8), word(4)),
            1 if entry.len() >= 40 && word(28) & 1 != 0 => {
                let length = u64::from(word(16)) | u64::from(word(20)) << 32;
                if let Some(node) = machine.node(word(2)).and_then(|n| machine.nodes.get_mut(n)) {
                    node.memory = node.memory.saturating_add(length);
                }
            }
            _ => {}
        }
    }
    // Numbers follow the domains, not the order of the table.
    let mut order: Vec<usize> = (0..machine.nodes.len()).collect();
    order.sort_by_key(|&n| machine.nodes[n].domain);
    for (_, node) in &mut machine.node_of {
        *node = order.iter().position(|&n| n == *node).unwrap_or(0);
    }
    machine.nodes.sort_by_key(|node| node.domain);
}

impl Machine {
    /// The index of a domain's node, made if need be.
    fn node(&mut self, domain: u32) -> Option<usize> {
        if let Some(n) = self.nodes.iter().position(|node| node.domain == domain) {
            return Some(n);
        }
        if self.nodes.len() == MAX_NODES {
            return None;
        }
        self.nodes.push(Node { domain, memory: 0 });
        Some(self.nodes.len() - 1)
    }

    fn add_cpu(&mut self, apic_id: u32, domain: u32) {
        if let Some(node) = self.node(domain) {
            self.node_of.push((apic_id, node));
        }
    }

    fn node_of(&self, apic_id: u32) -> usize {
        self.node_of.iter().find(|(id, _)| *id == apic_id).map_or(0, |(_, node)| *node)
    }
}

fn apic_id(cpu: CpuId) -> u32 {
    super::get(cpu).map_or(0, super::Cpu::apic_id)
}

/// The CPUs for which `number` is that of `cpu`.
fn sharing(cpu: CpuId, number: impl Fn(u32) -> u32) -> CpuMask {
    let own = number(apic_id(cpu));
    let mut mask = CpuMask::empty();
    super::all().filter(|other| number(other.apic_id()) == own).for_each(|other| mask.set(other.id));
    mask
}

/// A CPU's place.
pub fn place(cpu: CpuId) -> Place {
    let (id, shifts) = (apic_id(cpu), machine().shifts);
    let field = |low: u32, high: u32| id >> low & ((1u32 << (high - low)) - 1);
    Place {
        package: id >> shifts.package,
        die: field(shifts.die, shifts.package),
        core: field(shifts.core, shifts.package),
    }
}

/// The threads of a CPU's core.
pub fn threads(cpu: CpuId) -> CpuMask {
    sharing(cpu, |id| id >> machine().shifts.core)
}

/// The CPUs of a CPU's die.
pub fn die(cpu: CpuId) -> CpuMask {
    sharing(cpu, |id| id >> machine().shifts.die)
}

/// The CPUs of a CPU's package.
pub fn package(cpu: CpuId) -> CpuMask {
    sharing(cpu, |id| id >> machine().shifts.package)
}

/// The caches that each CPU has, nearest first.
pub fn all_caches() -> &'static [Cache] {
    &machine().caches
}

/// The CPUs that share a cache with `cpu`.
pub fn cache_sharing(cpu: CpuId, cache: &Cache) -> CpuMask {
    sharing(cpu, |id| id >> cache.shift.min(31))
}

/// The number of a cache of `cpu` among those of its kind.
pub fn cache_number(cpu: CpuId, cache: &Cache) -> u32 {
    apic_id(cpu) >> cache.shift.min(31)
}

/// How many nodes there are; at least one.
pub fn node_count() -> usize {
    machine().nodes.len().max(1)
}

/// The node of a CPU.
pub fn node_of(cpu: CpuId) -> usize {
    machine().node_of(apic_id(cpu))
}

/// The CPUs of a node.
pub fn node_cpus(node: usize) -> CpuMask {
    let mut mask = CpuMask::empty();
    super::all().filter(|cpu| machine().node_of(cpu.apic_id()) == node).for_each(|cpu| mask.set(cpu.id));
    mask
}

/// Bytes of a node's memory, if the tables tell.
pub fn node_memory(node: usize) -> Option<u64> {
    machine().nodes.get(node).map(|node| node.memory)
}

/// How far `to` is from `from`.
pub fn distance(from: usize, to: usize) -> u8 {
    let machine = machine();
    let domain = |n: usize| machine.nodes.get(n).map_or(0, |node| node.domain as usize);
    let side = (0..=MAX_NODES).find(|n| n * n == machine.slit.len()).unwrap_or(0);
    let (row, column) = (domain(from), domain(to));
    let told = (row < side && column < side).then(|| machine.slit.get(row * side + column)).flatten();
    told.copied().unwrap_or(if from == to { LOCAL } else { REMOTE })
}

/// The scheduler's view of the machine: who shares a core, the last cache, a node.
pub fn of_scheduler() -> &'static Topology {
    &machine().scheduler
}

impl Machine {
    fn seat(&self, apic_id: u32) -> Seat {
        let last = self.caches.iter().max_by_key(|cache| cache.level).map_or(self.shifts.package, |cache| cache.shift);
        Seat { core: apic_id >> self.shifts.core, cache: apic_id >> last.min(31), node: self.node_of(apic_id) as u32 }
    }
}
