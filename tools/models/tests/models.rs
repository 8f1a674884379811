//! Each model is a test of its name: see the documentation of the crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    models::run()
}
