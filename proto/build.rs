//! Generates the gRPC types of `proto` from the `.proto` files, without a `protoc` binary.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (file, include) in
        [("cri/v1/api.proto", "cri/v1"), ("lapstrake/admin/v1/admin.proto", "lapstrake/admin/v1")]
    {
        println!("cargo:rerun-if-changed={file}");
        let descriptors = protox::compile([file], [include])?;
        tonic_prost_build::configure().compile_fds(descriptors)?;
    }
    Ok(())
}
