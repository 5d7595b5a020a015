//! Compiles the contracts in `proto/proto` with protox, a protobuf compiler in Rust: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["busbar/v1/broker.proto", "busbar/v1/admin.proto", "busbar/v1/groups.proto", "busbar/peer/v1/peer.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
