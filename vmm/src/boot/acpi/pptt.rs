//! PPTT: the tree of processors, and which caches belong where.
//!
//! One node for each socket, die (if a socket has several), core (if it has several threads) and thread; caches hang on the
//! core or on the die, each with an id of its own, as revision 3 wants it (ACPI 6.5, 5.2.30).

use acpi_tables::pptt::{
    AllocationType, CacheHandle, CacheNodeBuilder, CacheType, PPTT, ProcessorHandle, ProcessorNode,
};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::boot::cpuid::levels::{Cache, CacheKind};
use crate::topology::Topology;

struct Builder<'a> {
    table: PPTT,
    caches: &'a [Cache],
    ids: u32,
}

/// The table for this tree and these caches.
pub fn pptt(topology: &Topology, caches: &[Cache]) -> Vec<u8> {
    let shape = topology.shape();
    let mut builder = Builder { table: PPTT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION), caches, ids: 0 };
    let mut uid = 0;
    for socket in 0..shape.sockets {
        let one_die = shape.dies == 1;
        let shared = if one_die { builder.level(true, None) } else { Vec::new() };
        let package = builder.add(ProcessorNode::new(None, socket).physical(), &shared);
        for die in 0..shape.dies {
            let (parent, shared) = if one_die {
                (package, shared.clone())
            } else {
                let shared = builder.level(true, None);
                (builder.add(ProcessorNode::new(Some(&package), socket * shape.dies + die), &shared), shared)
            };
            for core in 0..shape.cores {
                let private = builder.level(false, shared.last());
                if shape.threads == 1 {
                    builder.add(ProcessorNode::new(Some(&parent), uid).valid().leaf(), &private);
                    uid += 1;
                    continue;
                }
                let core = builder.add(ProcessorNode::new(Some(&parent), core), &private);
                for _ in 0..shape.threads {
                    builder.add(ProcessorNode::new(Some(&core), uid).valid().thread().leaf(), &[]);
                    uid += 1;
                }
            }
        }
    }
    bytes_of(&builder.table)
}

impl Builder<'_> {
    fn add(&mut self, node: ProcessorNode, caches: &[CacheHandle]) -> ProcessorHandle {
        let node = caches.iter().fold(node, |node, cache| node.add_cache(cache));
        self.table.add_processor(node)
    }

    /// The caches of a die (`shared`) or of a core, the largest first; each leads on to the one before it, if that is of a
    /// higher level, or to `next`. The last one returned is the nearest to the CPUs.
    fn level(&mut self, shared: bool, next: Option<&CacheHandle>) -> Vec<CacheHandle> {
        let mut caches: Vec<Cache> = self.caches.iter().filter(|cache| cache.is_shared() == shared).copied().collect();
        caches.sort_by_key(|cache| std::cmp::Reverse(cache.level));
        let (mut above, mut same) = ((u32::MAX, next.copied()), (u32::MAX, next.copied()));
        let mut handles = Vec::new();
        for cache in caches {
            if cache.level < same.0 {
                above = same;
            }
            let handle = self.cache(&cache, above.1.as_ref());
            same = (cache.level, Some(handle));
            handles.push(handle);
        }
        handles
    }

    fn cache(&mut self, cache: &Cache, next: Option<&CacheHandle>) -> CacheHandle {
        self.ids += 1;
        let kind = match cache.kind {
            CacheKind::Data => CacheType::Data,
            CacheKind::Instruction => CacheType::Instruction,
            CacheKind::Unified => CacheType::Unified,
        };
        let mut node = CacheNodeBuilder::default()
            .size(cache.size)
            .sets(cache.sets)
            .associativity(u8::try_from(cache.ways).unwrap_or(u8::MAX))
            .allocation_type(AllocationType::Both)
            .cache_type(kind)
            .line_size(cache.line as u16)
            .id(self.ids);
        if let Some(next) = next {
            node = node.next_level(next);
        }
        self.table.add_cache(node.to_node())
    }
}
