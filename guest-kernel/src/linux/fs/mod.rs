//! Files and everything with a file descriptor.

/// What a process knows of the file system: descriptors, working directory, umask.
pub struct FsContext;
