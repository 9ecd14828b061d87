//! Measurements of nested virtualization.

fn main() -> std::process::ExitCode {
    hypernest_bench::main()
}
