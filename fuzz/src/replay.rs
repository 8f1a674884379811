//! Runs a target with every input of its corpus, in the tests of the crates that have the targets' bodies.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// Fails with the name of the input that `body` panics at. `root` is the repository.
pub(crate) fn replay(root: impl AsRef<Path>, target: &str, body: fn(&[u8])) {
    let corpus = root.as_ref().join("fuzz/corpus").join(target);
    let inputs: Vec<_> = fs::read_dir(&corpus).expect("a corpus").map(|input| input.expect("a file").path()).collect();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    for input in inputs {
        let bytes = fs::read(&input).expect("an input");
        catch_unwind(|| body(&bytes)).unwrap_or_else(|_| panic!("{} fails", input.display()));
    }
}
