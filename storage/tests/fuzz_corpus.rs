//! The committed fuzz corpora, replayed: what the fuzzers found once stays fixed.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/batch.rs"]
mod batch;
#[path = "../../fuzz/src/recovery.rs"]
mod recovery;

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).expect("a corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        run(&fs::read(&path).expect("an input"));
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}

#[test]
fn batch_corpus() {
    replay("batch", batch::run);
}

#[test]
fn recovery_corpus() {
    replay("recovery", recovery::run);
}
