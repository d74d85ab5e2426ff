//! Scheduling from outside the guest: the shared memory, the messages, the commits. docs/delegation.md tells the whole story.
//!
//! The guest's side is [`Enclave`](enclave::Enclave), an agent's side [`Agent`](agent::Agent); both work on a
//! [`Region`](layout::Region), which is nothing but a slice of 64-bit atomics: whoever maps the memory makes that slice, and
//! that is all the `unsafe` there is. What is decided stands in pure tables: [`task`], [`check`], [`life`].
//!
//! | module | what lives there | who uses it |
//! | --- | --- | --- |
//! | [`abi`] | numbers and records, as C sees them | all |
//! | [`layout`] | where everything lies | all |
//! | [`message`], [`channel`] | what the guest tells, and its way | both |
//! | [`status`] | what the guest shows at any time | both |
//! | [`txn`] | what the agent asks for, and who owns it when | both |
//! | [`bell`] | waking an agent that sleeps | both |
//! | [`pick`] | tasks that the agent leaves ready for a CPU that would idle | both |
//! | [`task`], [`check`], [`life`] | what may happen to a task, a commit, an agent | guest |
//! | [`enclave`] | the guest's side | guest |
//! | [`door`] | how a process gets the memory from a VMM | VMM, agents |
//! | [`agent`], [`policies`] | the agent's side | agents |
//!
//! # The invariant
//! What a side owns, it keeps in private memory and only publishes in the region. So whatever the other side writes there,
//! each task is in exactly one place of the guest's own table, and nothing panics.

/// The port to which a kernel writes when it has rung the bell of an agent that sleeps outside of it; 4 bytes wide, the enclave's number.
pub const DOORBELL: u16 = 0x5d0;

pub mod abi;
pub mod agent;
pub mod bell;
pub mod channel;
pub mod check;
pub mod door;
pub mod enclave;
pub mod layout;
pub mod life;
pub mod message;
pub mod pick;
pub mod policies;
pub mod status;
pub mod task;
pub mod txn;
