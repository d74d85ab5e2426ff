//! The table of [`super::calls`] as programs for the kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::calls::{self, Only};
use super::{Kind, Mode};

/// The type byte of KVM's requests, and where it is in a request (Linux, include/uapi/linux/kvm.h and asm-generic/ioctl.h).
const KVM_TYPE: u64 = 0xae << 8;
const TYPE_MASK: u64 = 0xff << 8;

/// The filter of one kind of thread.
///
/// # Errors
/// A rule that seccompiler doesn't take: a defect of the table.
pub fn program(kind: Kind, mode: Mode) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls::ALL.iter().chain(calls::of(kind)) {
        rules.entry(call.number).or_default().extend(conditions(call.only)?);
    }
    let otherwise = if mode == Mode::Log { SeccompAction::Log } else { SeccompAction::Trap };
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// One rule for each way in which the call is allowed; none means any.
fn conditions(only: Only) -> Result<Vec<SeccompRule>, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    let rule = |arg, len, op, value| SeccompRule::new(vec![SeccompCondition::new(arg, len, op, value)?]);
    match only {
        Only::Any => Ok(Vec::new()),
        // The kernel takes 32 bits of a request.
        Only::Requests(requests) => {
            requests.iter().map(|request| rule(1, Dword, SeccompCmpOp::Eq, u64::from(*request))).collect()
        }
        Only::Kvm => Ok(vec![rule(1, Dword, SeccompCmpOp::MaskedEq(TYPE_MASK), KVM_TYPE)?]),
        Only::NotExecutable => Ok(vec![rule(2, Qword, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?]),
        Only::Ourselves => Ok(vec![rule(0, Dword, SeccompCmpOp::Eq, u64::from(std::process::id()))?]),
        Only::First(values) => values.iter().map(|value| rule(0, Qword, SeccompCmpOp::Eq, *value)).collect(),
    }
}
