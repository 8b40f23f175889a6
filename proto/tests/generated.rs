//! Keeps `src/gen` equal to what the `.proto` files generate.
//!
//! Run with `IMPOUND_REGENERATE=1` after a change of a `.proto` file; without it a difference fails.
//! The files are included with `include!`, so rustfmt leaves them alone.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

use tonic_prost_build::FileDescriptorSet;

/// Package and file of each contract. The package names the generated files.
const CONTRACTS: [(&str, &str); 3] = [
    ("impound.agent.v1", "impound/agent/v1/agent.proto"),
    (
        "impound.controller.v1",
        "impound/controller/v1/controller.proto",
    ),
    ("impound.issuer.v1", "impound/issuer/v1/issuer.proto"),
];

#[test]
fn generated_code_matches_the_proto_files() {
    let checked_in = root().join("src/gen");
    let scratch = tempfile::tempdir().unwrap();
    for (package, file) in CONTRACTS {
        generate(package, file, scratch.path());
        for name in [format!("{package}.rs"), format!("{package}.bin")] {
            let fresh = std::fs::read(scratch.path().join(&name)).unwrap();
            let path = checked_in.join(&name);
            if std::env::var_os("IMPOUND_REGENERATE").is_some() {
                std::fs::write(&path, &fresh).unwrap();
            }
            assert!(
                std::fs::read(&path).is_ok_and(|present| present == fresh),
                "{} is not what {file} generates: run `IMPOUND_REGENERATE=1 cargo test -p impound-proto \
                 --test generated` and commit the result",
                path.display()
            );
        }
    }
}

fn generate(package: &str, file: &str, into: &Path) {
    let mut compiler = protox::Compiler::new([root()]).unwrap();
    compiler.include_imports(true).include_source_info(true);
    compiler.open_file(root().join(file)).unwrap();
    let with_comments: FileDescriptorSet = compiler.file_descriptor_set();
    // Reflection clients need names and types; comments would only make the binary larger.
    let descriptors = compiler
        .include_source_info(false)
        .encode_file_descriptor_set();
    std::fs::write(into.join(format!("{package}.bin")), descriptors).unwrap();
    tonic_prost_build::configure()
        .out_dir(into)
        .emit_rerun_if_changed(false)
        // Bulk data is handed on without a copy.
        .bytes(".impound.agent.v1.ArtifactChunk.data")
        .bytes(".impound.controller.v1.EvidenceChunk.data")
        .compile_fds(with_comments)
        .unwrap();
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
