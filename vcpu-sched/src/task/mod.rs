//! A task as the scheduler sees it. What the kernel keeps of a task (stacks, page table, files) is not here; the
//! invariant is that the life of a task is the one word of [`state`], changed by nothing but its table; whether somebody outside
//! holds it off its program is another one, [`suspension`].

pub mod state;
pub mod suspension;
