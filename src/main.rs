//! hypernest: the command line in, one error chain out.

use std::process::ExitCode;

fn main() -> ExitCode {
    hypernest::cli::main(std::env::args_os())
}
