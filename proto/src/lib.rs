//! The wire contracts as Rust types: CRI v1, and our own admin service beside it.
//!
//! Invariant: nothing but generated code lives here; a hand-written helper would tie wire types
//! to policy.

/// Kubernetes Container Runtime Interface, `runtime.v1`.
pub mod cri {
    /// `cri/v1/api.proto` as an encoded `google.protobuf.FileDescriptorSet`, for what must know
    /// names and numbers at run time: the contract test, server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.bin"));

    /// Services `RuntimeService` and `ImageService`.
    #[allow(missing_debug_implementations, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

/// What the operator verbs ask of a running daemon.
pub mod admin {
    /// `lapstrake/admin/v1/admin.proto` as an encoded `google.protobuf.FileDescriptorSet`.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/admin.bin"));

    /// Service `Admin`.
    #[allow(missing_debug_implementations, clippy::all, clippy::pedantic)]
    pub mod v1 {
        tonic::include_proto!("lapstrake.admin.v1");
    }
}
