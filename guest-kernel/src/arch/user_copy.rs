//! Copies that may fault on user memory, and the table that turns such a fault into a short count.
//!
//! Only `mm::user` calls these. Invariant: every instruction here that touches user memory is in [`FIXUPS`].

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text, "ax", @progbits
    // copy_user(rdi dst, rsi src, rdx len) -> rax bytes NOT copied
    .global copy_user
copy_user:
    mov rcx, rdx
    shr rcx, 3
    .global copy_user_quads
copy_user_quads:
    rep movsq
    mov ecx, edx
    and ecx, 7
    .global copy_user_bytes
copy_user_bytes:
    rep movsb
    xor eax, eax
    ret
    .global copy_user_quads_fixup
copy_user_quads_fixup:
    and edx, 7
    lea rax, [rdx + rcx*8]
    ret
    .global copy_user_bytes_fixup
copy_user_bytes_fixup:
    mov rax, rcx
    ret

    // load_user_u32(rdi ptr, rsi out) -> rax 0 or 1
    .global load_user_u32
load_user_u32:
    .global load_user_u32_access
load_user_u32_access:
    mov eax, [rdi]
    mov [rsi], eax
    xor eax, eax
    ret
    .global load_user_u32_fixup
load_user_u32_fixup:
    mov eax, 1
    ret

    // cas_user_u32(rdi ptr, esi old, edx new, rcx out) -> rax 0 or 1; *out = value found
    .global cas_user_u32
cas_user_u32:
    mov eax, esi
    .global cas_user_u32_access
cas_user_u32_access:
    lock cmpxchg [rdi], edx
    mov [rcx], eax
    xor eax, eax
    ret
    "#
);

unsafe extern "C" {
    /// Copies; returns the bytes that were not copied.
    ///
    /// Safety: the kernel side is valid for `len` bytes; the user side lies in the user half.
    pub fn copy_user(dst: *mut u8, src: *const u8, len: usize) -> usize;
    /// Loads a word; returns 0 on success. Safety: as [`copy_user`].
    pub fn load_user_u32(ptr: *const u32, out: *mut u32) -> u64;
    /// Compare-and-swap; returns 0 if the access was possible. Safety: as [`copy_user`].
    pub fn cas_user_u32(ptr: *mut u32, old: u32, new: u32, out: *mut u32) -> u64;
    fn copy_user_quads();
    fn copy_user_bytes();
    fn copy_user_quads_fixup();
    fn copy_user_bytes_fixup();
    fn load_user_u32_access();
    fn load_user_u32_fixup();
    fn cas_user_u32_access();
}

/// Faulting instruction and where to go on.
static FIXUPS: [(unsafe extern "C" fn(), unsafe extern "C" fn()); 4] = [
    (copy_user_quads, copy_user_quads_fixup),
    (copy_user_bytes, copy_user_bytes_fixup),
    (load_user_u32_access, load_user_u32_fixup),
    (cas_user_u32_access, load_user_u32_fixup),
];

/// Where execution goes on after an unresolvable fault at `rip`, if that is one of ours.
pub fn fixup(rip: u64) -> Option<u64> {
    FIXUPS.iter().find(|(at, _)| *at as *const () as u64 == rip).map(|(_, to)| *to as *const () as u64)
}
