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
need chromedriver "the page is not tried in a browser" "Debian: apt-get install chromium chromium-driver"
need cargo-deny "licences are not checked" "cargo install --locked cargo-deny"
need typos "the spelling is not checked" "cargo install --locked typos-cli"

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || ldconfig -p 2>/dev/null | grep -q libclang ||
        compgen -G '/usr/lib/llvm-*/lib/libclang*' >/dev/null || compgen -G '/Library/Developer/*/usr/lib/libclang*' >/dev/null
}
features=full
without=()
if ! has_libclang || ! command -v g++ >/dev/null; then
    echo "note: libclang or a C++ compiler is not installed, so RocksDB is left out (Debian, Ubuntu: apt-get install libclang-dev g++)"
    left_out+=("RocksDB is left out")
    features=lmdb,fjall,sled without=(--exclude synckit-backend-rocksdb)
elif command -v ccache >/dev/null; then
    export CC="${CC:-ccache gcc}" CXX="${CXX:-ccache g++}"
else
    echo "note: ccache is not installed, so RocksDB is compiled anew in each target directory (Debian, Ubuntu: apt-get install ccache)"
fi
workspace=(--workspace ${without[@]+"${without[@]}"} --features "$features,synckit-eventstore/serde")

step "a plain build compiles neither RocksDB nor fjall nor sled"
if cargo tree --quiet --edges normal,build,dev --prefix none | grep -E '^(librocksdb-sys|rocksdb|lsm-tree|sled) '; then
    echo "the default features must not depend on these" >&2
    exit 1
fi

step "the library takes nothing that only the command needs"
if cargo tree --quiet -p synckit-eventstore --all-features --edges normal,build --prefix none | grep -E '^(clap|csv|indicatif|plotters) '; then
    echo "the library must not depend on these" >&2
    exit 1
fi

step "a plain build of the library has neither a server nor an HTTP client"
if cargo tree --quiet -p synckit-eventstore --edges normal,build --prefix none | grep -E '^(axum|hyper|rustls|tokio-postgres|tokio-tungstenite) '; then
    echo "the default features of the library must not depend on these" >&2
    exit 1
fi

step "format"
cargo fmt --all --check

step "spelling"
if command -v typos >/dev/null; then typos; else echo "left out"; fi

step "lints"
cargo clippy "${workspace[@]}" --all-targets -- -D warnings

step "tests and the examples in the documentation, on every backend: $features"
cargo test "${workspace[@]}"

if command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1; then
    step "wrong stores on PostgreSQL are noticed"
    cargo test --quiet -p synckit-backend-postgres --features mutants --test mutants
else
    echo "left out: apt-get install postgresql"
    left_out+=("stores on PostgreSQL are not tested")
fi

step "the repository of cqrs-es over a store, alone: without what other crates ask of their dependencies"
cargo test --quiet -p synckit-eventstore-cqrs

step "a store of somebody else's, outside the workspace, against the suite"
cargo test --quiet --manifest-path examples/sqlite-store/Cargo.toml

step "an order service, outside the workspace, killed under load"
cargo fmt --manifest-path examples/orders/Cargo.toml --check
cargo clippy --quiet --manifest-path examples/orders/Cargo.toml --all-targets -- -D warnings
cargo test --quiet --manifest-path examples/orders/Cargo.toml

step "a to-do list that works offline, outside the workspace, its processes killed"
cargo fmt --manifest-path examples/todo/Cargo.toml --check
cargo clippy --quiet --manifest-path examples/todo/Cargo.toml --all-targets -- -D warnings
cargo test --quiet --manifest-path examples/todo/Cargo.toml

step "each feature alone"
alone=("" zstd lmdb fjall sled)
if [ "$features" = full ]; then alone+=(rocksdb full); fi
for package in synckit-eventstore synckit-eventstore-cli benches; do
    own=()
    case $package in
    synckit-eventstore) own=(http postgres) ;;
    synckit-eventstore-cli) own=(http postgres serve sync) ;;
    esac
    for feature in "${alone[@]}" ${own[@]+"${own[@]}"}; do
        echo "$package: features: [$feature]"
        cargo check --quiet -p "$package" --all-targets --no-default-features --features "$feature"
    done
done
for package in synckit-eventstore-api synckit-eventstore; do
    echo "$package: features: [serde]"
    cargo check --quiet -p "$package" --all-targets --no-default-features --features serde
done
for package in synckit-eventstore-log synckit-eventstore-kv synckit; do
    echo "$package: features: []"
    cargo check --quiet -p "$package" --all-targets --no-default-features
done
for alone in "" crash; do
    echo "features of the suite: [$alone]"
    cargo check --quiet -p synckit-conformance --lib --no-default-features --features "$alone"
done

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet "${workspace[@]}" --no-deps

step "benchmarks compile, and their results are right"
for bench in store open handle; do
    cargo bench --quiet --profile dev -p benches --features "$features" --bench "$bench" -- --test
done
for bench in memory served sync; do
    cargo bench --quiet --profile dev -p synckit-eventstore-cli --features "$features" --bench "$bench" -- --test
done
cargo bench --quiet --profile dev -p synckit-backend-postgres --bench postgres -- --test

step "what is outside the workspace still compiles: fuzz targets, the comparison with other stores"
RUSTFLAGS="--cfg fuzzing" cargo check --quiet --manifest-path fuzz/Cargo.toml
if [ "$features" = full ]; then cargo check --quiet --manifest-path tools/bench-peers/Cargo.toml; fi

minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
step "the least Rust that is promised, $minimum"
if command -v rustup >/dev/null && rustup toolchain list | grep -q "^$minimum[.-]"; then
    # fjall asks for a newer one.
    cargo "+$minimum" check --quiet -p synckit-eventstore -p synckit-eventstore-cli -p synckit -p synckit-conformance --features lmdb,sled
else
    echo "left out: rustup toolchain install --profile minimal $minimum"
    left_out+=("Rust $minimum is not tried")
fi

step "the packages that are published have all they need"
# cargo would compile each of them, and RocksDB with it. So they are packed, and what needs no RocksDB is compiled from what
# was packed; nothing of it has to be on crates.io, nor does the network have to be there.
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
packed="$target/package/unpacked"
rm -rf "$target/package"
cargo package --quiet --offline --allow-dirty --no-verify --workspace --exclude benches --exclude cutting-proxy --exclude engine-suite --exclude models --exclude postgres-cluster --exclude sync-simulation --exclude sync-torture
mkdir -p "$packed"
cp Cargo.lock "$packed"
printf '[workspace]\nresolver = "3"\nmembers = ["synckit-*"]\n[patch.crates-io]\n' >"$packed/Cargo.toml"
for crate in "$target"/package/*.crate; do
    # With the time of now: cargo compiles again what is newer.
    tar -xzmf "$crate" -C "$packed"
    crate=$(basename "$crate" .crate)
    echo "${crate%%-[0-9]*} = { path = \"$crate\" }" >>"$packed/Cargo.toml"
done
cargo check --quiet --offline --manifest-path "$packed/Cargo.toml" --target-dir "$target" \
    -p synckit-eventstore-cli -p synckit-conformance --features lmdb,fjall,sled
# What else publishing looks at needs the index of crates.io.
if ! said=$(cargo publish --workspace --dry-run --no-verify --allow-dirty 2>&1); then
    case $said in
    *"Could not resolve hostname"* | *"ould not connect"* | *"timed out"*)
        echo "left out: publishing is not tried, since crates.io cannot be reached"
        left_out+=("publishing is not tried")
        ;;
    *)
        echo "$said" >&2
        exit 1
        ;;
    esac
fi

step "what was released keeps its promises"
released=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
if [ -z "$released" ]; then
    echo "nothing was released yet"
elif command -v cargo-semver-checks >/dev/null; then
    cargo semver-checks --workspace --baseline-rev "$released"
else
    echo "left out: cargo install --locked cargo-semver-checks"
    left_out+=("the interfaces are not compared with those of $released")
fi

step "licences, sources and banned dependencies"
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
else
    echo "left out"
fi

step "the tours"
cargo run --quiet -- demo
cargo run --quiet -- demo sync

step "all of it passed"
if [ ${#left_out[@]} -gt 0 ]; then printf 'but %s\n' "${left_out[@]}"; fi
