//! Error numbers, as programs see them (Linux `include/uapi/asm-generic/errno*.h`), and the internal ones that ask for a restart.

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Errno(pub i32);

/// What a system call gives: a value, or an error that becomes `-errno`.
pub type SysResult = Result<u64, Errno>;

macro_rules! errnos {
    ($($name:ident = $value:expr;)*) => {
        // All that a Linux program may know, used or not.
        #[allow(missing_docs, dead_code)]
        impl Errno { $(pub const $name: Self = Self($value);)* }
        impl Errno {
            /// Its name, for traces.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($value => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

errnos! {
    EPERM = 1; ENOENT = 2; ESRCH = 3; EINTR = 4; EIO = 5; ENXIO = 6; E2BIG = 7; ENOEXEC = 8; EBADF = 9; ECHILD = 10; EAGAIN = 11;
    ENOMEM = 12; EACCES = 13; EFAULT = 14; EBUSY = 16; EEXIST = 17; EXDEV = 18; ENODEV = 19; ENOTDIR = 20; EISDIR = 21;
    EINVAL = 22; ENFILE = 23; EMFILE = 24; ENOTTY = 25; ETXTBSY = 26; EFBIG = 27; ENOSPC = 28; ESPIPE = 29; EROFS = 30;
    EMLINK = 31; EPIPE = 32; EDOM = 33; ERANGE = 34; EDEADLK = 35; ENAMETOOLONG = 36; ENOSYS = 38; ENOTEMPTY = 39; ELOOP = 40;
    EOVERFLOW = 75; ELIBBAD = 80; EOPNOTSUPP = 95; EAFNOSUPPORT = 97; ENOBUFS = 105; ETIMEDOUT = 110; EOWNERDEAD = 130;
    // Never seen by programs: the way back to ring 3 turns them into a restart or EINTR (Linux include/linux/errno.h).
    // Restart unless the signal's handler lacks SA_RESTART.
    ERESTARTSYS = 512;
    // Restart, whatever the handler.
    ERESTARTNOINTR = 513;
    // Restart unless a handler runs.
    ERESTARTNOHAND = 514;
    // Restart by restart_syscall(2): the remaining time is kept in the thread.
    ERESTART_RESTARTBLOCK = 516;
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(n) => f.write_str(n),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl From<crate::mm::user::Fault> for Errno {
    fn from(_: crate::mm::user::Fault) -> Self {
        Self::EFAULT
    }
}

impl From<crate::mm::address_space::MapError> for Errno {
    fn from(e: crate::mm::address_space::MapError) -> Self {
        use crate::mm::address_space::MapError;
        match e {
            MapError::BadRange => Self::EINVAL,
            MapError::NotMapped | MapError::NoMemory => Self::ENOMEM,
        }
    }
}

impl From<crate::mm::frame::OutOfMemory> for Errno {
    fn from(_: crate::mm::frame::OutOfMemory) -> Self {
        Self::ENOMEM
    }
}
