#!/usr/bin/env bash
# Everything that has to hold before a change lands. Needs Rust and a C compiler; says what else it would use.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

for tool in strace cargo-deny; do
    command -v "$tool" >/dev/null || echo "note: $tool is not installed; what needs it is left out"
done
command -v strace >/dev/null || echo "      Debian, Ubuntu: apt-get install strace"
command -v cargo-deny >/dev/null || echo "      cargo install --locked cargo-deny"

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets -- -D warnings

step "tests and the examples in the documentation"
cargo test --workspace

step "each feature alone"
for features in "" lmdb cli lmdb,cli; do
    echo "features: [$features]"
    cargo check --quiet -p eventstore --no-default-features --features "$features"
done

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps

step "benchmarks compile, and their results are right"
cargo bench --quiet --bench store -- --test
cargo bench --quiet --bench memory -- --test

step "licences, sources and banned dependencies"
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
else
    echo "left out"
fi

step "the tour"
cargo run --quiet --release -- demo

step "all of it passed"
