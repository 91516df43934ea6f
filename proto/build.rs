//! Generates the gRPC types of `proto` from the `.proto` files, without a `protoc` binary.

use std::{env, error::Error, fs, path::Path};

use protox::prost::Message;

/// (the name its descriptors get in `OUT_DIR`, the file, where its imports start)
const CONTRACTS: [(&str, &str, &str); 2] = [
    ("cri.bin", "cri/v1/api.proto", "cri/v1"),
    ("admin.bin", "lapstrake/admin/v1/admin.proto", "lapstrake/admin/v1"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    for (descriptors, file, include) in CONTRACTS {
        println!("cargo:rerun-if-changed={file}");
        let parsed = protox::compile([file], [include])?;
        fs::write(Path::new(&out).join(descriptors), parsed.encode_to_vec())?;
        tonic_prost_build::configure().compile_fds(parsed)?;
    }
    Ok(())
}
