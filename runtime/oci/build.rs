//! The program has an entry of its own: `src/sealed/sys.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,--entry=sealed_start");
}
