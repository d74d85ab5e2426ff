//! What runs inside: the guest kernel and the example programs, built by `build.rs` and embedded here.
