//! What CPUs say to each other: [`sleep`] decides who may halt and who must be woken, [`kick`] sees that one interrupt is
//! sent for many requests. Both are one atomic word per CPU, and the invariant of both: nothing that was handed over is
//! left lying while its CPU believes that it has seen all.

pub mod kick;
pub mod sleep;
