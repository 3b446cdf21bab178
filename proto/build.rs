//! Compiles every `.proto` file of this directory, in Rust (protox): no system `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let mut files = Vec::new();
    for tree in ["kittiwake", "metadata"] {
        println!("cargo:rerun-if-changed={tree}");
        collect(&root.join(tree), &mut files)?;
    }
    // The order of directory entries is the file system's; the generated code must not depend on it.
    files.sort();

    let mut compiler = protox::Compiler::new([&root])?;
    // Reflection needs the imports as well; doc comments come from the source information.
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files)?;

    tonic_prost_build::configure()
        // Records and snapshots must encode to the same bytes on every node.
        .btree_map(".")
        .bytes(".")
        .compile_fds(compiler.file_descriptor_set())?;

    // Reflection does not need the comments.
    compiler.include_source_info(false);
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(out, compiler.encode_file_descriptor_set())?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path);
        }
    }
    Ok(())
}
