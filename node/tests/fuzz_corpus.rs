//! The committed fuzz corpus of the listener's decoding, replayed: what the fuzzer found once stays fixed.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/frame.rs"]
mod frame;

#[test]
fn frame_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/frame");
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).expect("a corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        frame::run(&fs::read(&path).expect("an input"));
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}
