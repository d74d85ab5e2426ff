//! The guest's clock: from ticks of a counter that nobody can steer to nanoseconds of a time that can be steered.
//!
//! | module | what |
//! | --- | --- |
//! | [`scale`] | ticks to nanoseconds and back, by multiplication |
//! | [`rate`] | how fast virtual time runs against the host's |
//! | [`line`](mod@line) | a clock at one moment and from then on, and what a change makes of it |
//! | [`page`] | the page that the VMM writes, and kernel and programs read |
//! | [`fast`] | a CPU's own copy for its scheduler: five instructions |
//!
//! The guest kernel fills the page at boot and reads it, its vDSO reads it in ring 3, the VMM writes it when the clock is changed.
//! Invariant: a clock never runs backwards, whatever is changed, unless a backward step is asked for by its name
//! ([`line::Step::Backward`]).

pub mod fast;
pub mod line;
pub mod page;
pub mod rate;
pub mod scale;

pub use fast::FastClock;
pub use line::{ClockLine, Step, StepError};
pub use page::ClockPage;
pub use rate::Rate;
pub use scale::TscScale;
