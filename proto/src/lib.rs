//! The wire contracts as Rust types: CRI v1, and our own admin service beside it.
//!
//! Invariant: nothing but generated code lives here; a hand-written helper would tie wire types
//! to policy.

/// Kubernetes Container Runtime Interface, `runtime.v1`.
pub mod cri {
    /// Services `RuntimeService` and `ImageService`.
    #[allow(missing_debug_implementations, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

/// What the operator verbs ask of a running daemon.
pub mod admin {
    /// Service `Admin`.
    #[allow(missing_debug_implementations, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("lapstrake.admin.v1");
    }
}
