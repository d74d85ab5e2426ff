//! Frames, heap, page tables and address spaces.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::ids::CpuId;

use super::scheduling::move_to;
use super::{Test, TestResult, check, join, spawn_on, tests};
use crate::cpu;
use crate::mm::address_space::{Access, AddressSpace, FaultError, MapError};
use crate::mm::layout::PAGE_SIZE;
use crate::mm::vma::{Backing, PageSource, Prot, SourceFrame};
use crate::mm::{PhysAddr, frame, heap, kernel_map, user};
use crate::sched;
use crate::task::current;
use crate::time;

pub(super) const TESTS: &[Test] = tests![
    frames_are_distinct_and_come_back,
    zeroed_frames_are_zero,
    blocks_are_aligned_and_merge,
    heap_objects_are_aligned_and_apart,
    heap_objects_freed_on_another_cpu,
    heap_pages_come_back,
    kernel_image_is_write_xor_execute,
    what_programs_map_of_the_image_stays_the_kernels,
    map_fault_and_unmap,
    rights_are_kept,
    fork_copies_on_write,
    split_merge_and_move,
    leaves_nothing_behind,
];

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn frames_are_distinct_and_come_back() -> TestResult {
    let before = frame::usage().0;
    let mut seen = BTreeSet::new();
    let mut all = Vec::with_capacity(300);
    let inside = frame::usage().0;
    for _ in 0..300 {
        let f = frame::alloc().map_err(|e| alloc::format!("{e:?}"))?;
        check!(seen.insert(f.0), "{f:?} was handed out twice");
        check!(frame::refs(f) == 1);
        all.push(f);
    }
    check!(frame::usage().0 <= inside - 300);
    all.into_iter().for_each(frame::put);
    drop(seen);
    // The heap may keep a few frames for its classes.
    check!(frame::usage().0 + 16 >= before, "{} of {before} frames came back", frame::usage().0);
    Ok(())
}

fn zeroed_frames_are_zero() -> TestResult {
    for round in 0..3 {
        let mut all = Vec::new();
        for _ in 0..20 {
            let f = frame::alloc_zeroed().map_err(|e| alloc::format!("{e:?}"))?;
            // SAFETY: our frame.
            let words = unsafe { core::slice::from_raw_parts_mut(f.as_ptr::<u64>(), 512) };
            check!(words.iter().step_by(if round == 0 { 1 } else { 37 }).all(|w| *w == 0), "{f:?} in round {round}");
            words[round * 37] = u64::MAX;
            words[511] = 1;
            all.push(f);
        }
        all.into_iter().for_each(frame::put);
    }
    Ok(())
}

fn blocks_are_aligned_and_merge() -> TestResult {
    for order in [1, 2, 3, 5, 8] {
        let a = frame::alloc_block(order, false).map_err(|e| alloc::format!("{e:?}"))?;
        let b = frame::alloc_block(order, false).map_err(|e| alloc::format!("{e:?}"))?;
        let size = PAGE_SIZE << order;
        check!(a.0 % size == 0 && b.0 % size == 0);
        check!(a.0.abs_diff(b.0) >= size, "{a:?} and {b:?} overlap");
        frame::free_block(a, order);
        frame::free_block(b, order);
    }
    Ok(())
}

fn heap_objects_are_aligned_and_apart() -> TestResult {
    use core::alloc::Layout;
    let mut live = Vec::new();
    for size in [1usize, 8, 16, 17, 48, 64, 100, 128, 200, 256, 400, 512, 700, 1024, 1500, 2048, 2049, 5000, 20000] {
        for align in [1usize, 8, 16, 64, 256, 4096] {
            let layout = Layout::from_size_align(size, align).map_err(|e| alloc::format!("{e}"))?;
            // SAFETY: the size isn't zero.
            let p = unsafe { alloc::alloc::alloc(layout) };
            check!(!p.is_null() && (p as usize).is_multiple_of(align), "size {size} align {align} gave {p:?}");
            // SAFETY: inside the object.
            unsafe {
                p.write(size as u8);
                p.add(size - 1).write(size as u8);
            }
            live.push((p as usize, layout));
        }
    }
    live.sort_by_key(|(p, _)| *p);
    for w in live.windows(2) {
        check!(w[0].0 + w[0].1.size() <= w[1].0);
    }
    for (p, layout) in live {
        // SAFETY: allocated above with this layout.
        unsafe { alloc::alloc::dealloc(p as *mut u8, layout) };
    }
    Ok(())
}

fn heap_objects_freed_on_another_cpu() -> TestResult {
    extern "C" fn free(list: usize) -> ! {
        // SAFETY: leaked by the test for us.
        let list = unsafe { Box::from_raw(list as *mut Vec<Box<[u64; 12]>>) };
        drop(list);
        sched::exit_current()
    }
    for round in 0..4u32 {
        let list: Vec<Box<[u64; 12]>> = (0..200).map(|i| Box::new([i; 12])).collect();
        let t = spawn_on(round + 1, "free", free, Box::into_raw(Box::new(list)) as usize)?;
        join(&t);
    }
    Ok(())
}

/// 8 MiB of small objects, freed in an order that empties each page only at the very end: all frames come back but what the
/// bounded per-CPU lists hold.
fn heap_pages_come_back() -> TestResult {
    struct Node<const WORDS: usize> {
        next: Option<Box<Self>>,
        content: [usize; WORDS],
    }
    fn fill_and_empty<const WORDS: usize>(bytes: usize) -> TestResult {
        let size = size_of::<Node<WORDS>>();
        let mut lists = [None, None, None];
        for i in 0..bytes / size {
            let list = &mut lists[i % 3];
            *list = Some(Box::new(Node { next: list.take(), content: [i; WORDS] }));
        }
        for mut list in lists {
            while let Some(mut node) = list {
                check!(node.content[0] == node.content[WORDS - 1], "object {} of {size} bytes", node.content[0]);
                list = node.next.take();
            }
        }
        Ok(())
    }
    // On one CPU, so that it has only that CPU's lists to allow for; what is filled takes a multiple of that.
    let me = current().to_arc();
    move_to(&me, CpuId(0))?;
    let before = frame::usage().0;
    fill_and_empty::<7>(64 << 10)?;
    fill_and_empty::<31>(192 << 10)?;
    fill_and_empty::<127>(1 << 20)?;
    fill_and_empty::<255>(3 << 20)?;
    let after = frame::usage().0;
    // Each object on a CPU's list may hold a page.
    let held = heap::most_listed(&[64, 256, 1024, 2048]);
    check!(after + held >= before, "{before} frames free before, {after} after, {held} held at most");
    sched::set_affinity(&me, &CpuMask::full(cpu::MAX_CPUS as u32)).map_err(|e| alloc::format!("{e}"))
}

fn kernel_image_is_write_xor_execute() -> TestResult {
    use crate::mm::layout::{KERNEL_BASE, KERNEL_SLOT};
    use crate::mm::page_table::{Flags, Table, index};
    let me = current();
    let top = me.block.top();
    // SAFETY: the kernel half's tables live for ever.
    let pd = unsafe {
        let pdpt = Table::at(top.get(KERNEL_SLOT).frame());
        Table::at(pdpt.get(index(KERNEL_BASE, 3)).frame())
    };
    let (mut text, mut data) = (0, 0);
    for i in 0..512 {
        let e = pd.get(i);
        if !e.is_present() {
            continue;
        }
        check!(!e.flags().contains(Flags::LARGE));
        // SAFETY: as above.
        let pt = unsafe { Table::at(e.frame()) };
        for j in 0..512 {
            let p = pt.get(j);
            if p.is_present() {
                let x = !p.flags().contains(Flags::NO_EXECUTE);
                check!(!(p.is_writable() && x), "page {i}/{j} is writable and executable");
                check!(!p.flags().contains(Flags::USER));
                text += usize::from(x);
                data += usize::from(p.is_writable());
            }
        }
    }
    check!(text > 0 && data > 0);
    Ok(())
}

/// Runs `f` with the current task inside a fresh address space.
pub(super) fn in_space(f: impl FnOnce(&AddressSpace) -> TestResult) -> TestResult {
    let space = AddressSpace::new().map_err(|e| alloc::format!("{e:?}"))?;
    current().replace_space(Some(space.clone()));
    let r = f(&space);
    current().replace_space(None);
    r
}

fn map(space: &AddressSpace, pages: u64) -> Result<u64, alloc::string::String> {
    space.map(0, pages * PAGE_SIZE, RW, Backing::Anonymous, 0, false, "").map_err(|e| alloc::format!("{e:?}"))
}

fn map_fault_and_unmap() -> TestResult {
    in_space(|space| {
        let at = map(space, 8)?;
        for i in 0..8u64 {
            check!(user::read::<u64>(at + i * PAGE_SIZE) == Ok(0));
            check!(user::write(at + i * PAGE_SIZE + 8, &(i + 1)).is_ok());
        }
        for i in 0..8u64 {
            check!(user::read::<u64>(at + i * PAGE_SIZE + 8) == Ok(i + 1));
        }
        check!(space.unmap(at + 2 * PAGE_SIZE, PAGE_SIZE).is_ok());
        check!(user::read::<u64>(at + 2 * PAGE_SIZE).is_err());
        check!(user::read::<u64>(at + 3 * PAGE_SIZE + 8) == Ok(4));
        // Across the hole: the part before it is copied.
        let mut buf = alloc::vec![0u8; 3 * PAGE_SIZE as usize];
        check!(user::read_bytes(&mut buf, at + PAGE_SIZE).is_err());
        check!(space.unmap(at, 8 * PAGE_SIZE).is_ok());
        check!(user::write(at, &1u64).is_err());
        check!(user::read::<u64>(0).is_err());
        check!(user::read::<u64>(crate::mm::layout::USER_END - 4).is_err());
        check!(user::read::<u64>(u64::MAX - 3).is_err());
        Ok(())
    })
}

/// Offers one frame of the kernel's image.
struct ImagePage(PhysAddr);

impl PageSource for ImagePage {
    fn frame(&self, _page: u64) -> Result<SourceFrame, frame::OutOfMemory> {
        Ok(SourceFrame::Kept(self.0))
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a page of the image")
    }
}

fn what_programs_map_of_the_image_stays_the_kernels() -> TestResult {
    let (start, end) = kernel_map::image_range();
    for at in (start.0..end.0).step_by(PAGE_SIZE as usize) {
        check!(frame::refs(PhysAddr(at)) != 0, "the allocator would take {:?} of the image", PhysAddr(at));
    }
    let clock = time::page_frame();
    let users = frame::refs(clock);
    in_space(|space| {
        let backing = Backing::Private(Arc::new(ImagePage(clock)));
        let at = space.map(0, PAGE_SIZE, RW, backing, 0, false, "").map_err(|e| alloc::format!("{e:?}"))?;
        let magic: u64 = user::read(at).map_err(|e| alloc::format!("{e:?}"))?;
        check!(space.lookup(at).map(|e| e.frame()) == Some(clock) && frame::refs(clock) == users + 1);
        // Nobody else has it mapped, and yet the writer gets a copy.
        check!(user::write(at, &!magic).is_ok() && user::read(at) == Ok(!magic));
        check!(space.lookup(at).is_some_and(|e| e.frame() != clock), "a program writes into the image");
        Ok(())
    })?;
    check!(frame::refs(clock) == users, "{} users, not {users}", frame::refs(clock));
    Ok(())
}

fn rights_are_kept() -> TestResult {
    in_space(|space| {
        let at = map(space, 2)?;
        check!(user::write(at, &7u64).is_ok());
        check!(space.protect(at, PAGE_SIZE, Prot::READ).is_ok());
        check!(user::read::<u64>(at) == Ok(7));
        check!(user::write(at, &8u64).is_err());
        check!(space.resolve(current().block.top(), at, Access::Execute) == Err(FaultError::Denied));
        check!(space.protect(at, PAGE_SIZE, Prot::empty()).is_ok());
        check!(user::read::<u64>(at).is_err());
        check!(space.protect(at, PAGE_SIZE, RW).is_ok());
        check!(user::read::<u64>(at) == Ok(7), "the page survives PROT_NONE");
        check!(user::write(at, &9u64).is_ok());
        check!(space.protect(at, 3 * PAGE_SIZE, RW) == Err(MapError::NotMapped));
        check!(space.protect(at + 1, PAGE_SIZE, RW) == Err(MapError::BadRange));
        Ok(())
    })
}

fn fork_copies_on_write() -> TestResult {
    in_space(|space| {
        let at = map(space, 4)?;
        check!(user::write(at, &1u64).is_ok());
        check!(user::write(at + PAGE_SIZE, &2u64).is_ok());
        let child = space.fork().map_err(|e| alloc::format!("{e:?}"))?;
        let shared = child.lookup(at).ok_or("the child lacks the page")?;
        check!(space.lookup(at) == Some(shared) && !shared.is_writable() && frame::refs(shared.frame()) == 2);
        check!(user::write(at, &10u64).is_ok());
        let mine = space.lookup(at).ok_or("page lost")?;
        check!(mine.frame() != shared.frame() && mine.is_writable() && frame::refs(shared.frame()) == 1);
        // SAFETY: the child's page, which nobody writes.
        check!(unsafe { child.lookup(at).map(|e| *e.frame().as_ptr::<u64>()) } == Some(1));
        drop(child);
        let second = space.lookup(at + PAGE_SIZE).ok_or("page lost")?;
        check!(user::write(at + PAGE_SIZE, &20u64).is_ok());
        check!(space.lookup(at + PAGE_SIZE).map(|e| e.frame()) == Some(second.frame()), "the last user copies nothing");
        Ok(())
    })
}

fn split_merge_and_move() -> TestResult {
    in_space(|space| {
        let at = map(space, 6)?;
        for i in 0..6u64 {
            check!(user::write(at + i * PAGE_SIZE, &i).is_ok());
        }
        check!(space.protect(at + 2 * PAGE_SIZE, 2 * PAGE_SIZE, Prot::READ).is_ok());
        check!(space.lock().iter().count() == 3);
        check!(space.protect(at + 2 * PAGE_SIZE, 2 * PAGE_SIZE, RW).is_ok());
        check!(space.lock().iter().count() == 1, "{} mappings", space.lock().iter().count());
        let moved = space.remap(at, 6 * PAGE_SIZE, 12 * PAGE_SIZE, true, None).map_err(|e| alloc::format!("{e:?}"))?;
        for i in 0..6u64 {
            check!(user::read::<u64>(moved + i * PAGE_SIZE) == Ok(i), "page {i}");
        }
        check!(user::read::<u64>(moved + 11 * PAGE_SIZE) == Ok(0));
        check!(moved == at || user::read::<u64>(at).is_err());
        check!(space.discard(moved, PAGE_SIZE).is_ok());
        check!(user::read::<u64>(moved) == Ok(0));
        Ok(())
    })
}

fn leaves_nothing_behind() -> TestResult {
    let cycle = || {
        in_space(|space| {
            let at = map(space, 40)?;
            for i in 0..40u64 {
                check!(user::write(at + i * PAGE_SIZE, &i).is_ok());
            }
            drop(space.fork());
            check!(user::write(at, &1u64).is_ok());
            Ok(())
        })
    };
    cycle()?; // fills caches
    let before = frame::usage().0;
    for _ in 0..5 {
        cycle()?;
    }
    let after = frame::usage().0;
    check!(before.abs_diff(after) <= 8 * cpu::count(), "{before} frames free before, {after} after");
    Ok(())
}
