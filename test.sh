#!/usr/bin/env bash
# Everything that has to hold before a change lands. Needs Rust and a C compiler; says what else it would use.
#
# With libclang and a C++ compiler it includes RocksDB, whose first build takes 10 to 30 minutes; ccache remembers it for
# every later one, in whatever directory.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

left_out=()
need() { # tool, what goes without it, how to get it
    command -v "$1" >/dev/null && return
    echo "note: $1 is not installed, so $2 ($3)"
    left_out+=("$2")
}
need strace "tests that watch system calls are ignored" "Debian, Ubuntu: apt-get install strace"
need unshare "tests that fill a disk are ignored" "Debian, Ubuntu: apt-get install util-linux"
need cargo-deny "licences are not checked" "cargo install --locked cargo-deny"

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || ldconfig -p 2>/dev/null | grep -q libclang ||
        compgen -G '/usr/lib/llvm-*/lib/libclang*' >/dev/null || compgen -G '/Library/Developer/*/usr/lib/libclang*' >/dev/null
}
features=full
without=()
if ! has_libclang || ! command -v g++ >/dev/null; then
    echo "note: libclang or a C++ compiler is not installed, so RocksDB is left out (Debian, Ubuntu: apt-get install libclang-dev g++)"
    left_out+=("RocksDB is left out")
    features=lmdb,fjall,sled without=(--exclude backend-rocksdb)
elif command -v ccache >/dev/null; then
    export CC="${CC:-ccache gcc}" CXX="${CXX:-ccache g++}"
else
    echo "note: ccache is not installed, so RocksDB is compiled anew in each target directory (Debian, Ubuntu: apt-get install ccache)"
fi
workspace=(--workspace ${without[@]+"${without[@]}"} --features "$features")

step "a plain build compiles neither RocksDB nor fjall nor sled"
if cargo tree --quiet --edges normal,build,dev --prefix none | grep -E '^(librocksdb-sys|rocksdb|lsm-tree|sled) '; then
    echo "the default features must not depend on these" >&2
    exit 1
fi

step "format"
cargo fmt --all --check

step "lints"
cargo clippy "${workspace[@]}" --all-targets -- -D warnings

step "tests and the examples in the documentation, on every backend: $features"
cargo test "${workspace[@]}"

step "a store of somebody else's, outside the workspace, against the suite"
cargo test --quiet --manifest-path examples/sqlite-store/Cargo.toml

step "each feature alone"
alone=("" cli zstd lmdb fjall sled lmdb,cli fjall,cli sled,cli)
if [ "$features" = full ]; then alone+=(rocksdb rocksdb,cli full); fi
for alone in "${alone[@]}"; do
    echo "features: [$alone]"
    cargo check --quiet -p eventstore --all-targets --no-default-features --features "$alone"
done
for package in eventstore-log eventstore-kv; do
    echo "$package: features: []"
    cargo check --quiet -p "$package" --all-targets --no-default-features
done
for alone in "" crash; do
    echo "features of the suite: [$alone]"
    cargo check --quiet -p conformance --lib --no-default-features --features "$alone"
done

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet "${workspace[@]}" --no-deps

step "benchmarks compile, and their results are right"
for bench in store open memory; do
    cargo bench --quiet --profile dev -p eventstore --features "$features" --bench "$bench" -- --test
done

step "licences, sources and banned dependencies"
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
else
    echo "left out"
fi

step "the tour"
cargo run --quiet -- demo

step "all of it passed"
if [ ${#left_out[@]} -gt 0 ]; then printf 'but %s\n' "${left_out[@]}"; fi
