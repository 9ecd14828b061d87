//! Logging to stderr. No code logs between a vCPU's exit and its next entry.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::uptime;

use super::CliError;
use crate::text::nearest;

const VARIABLE: &str = "HYPERNEST_LOG";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Starts logging at the level of the flag, else of the environment variable, else warnings and errors only.
pub(super) fn start(flag: Option<&str>) -> Result<(), CliError> {
    let variable = std::env::var(VARIABLE).ok().filter(|v| !v.is_empty());
    let (from, filter) = match (flag, &variable) {
        (Some(flag), _) => ("--log", flag),
        (None, Some(variable)) => (VARIABLE, variable.as_str()),
        (None, None) => ("", "warn"),
    };
    let filter = parse(filter).map_err(|what| CliError::Log { from, what })?;
    // Fails only if a subscriber is already installed, which serves as well.
    let _already = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_timer(uptime())
        // It would print to stderr, and panic if stderr is closed.
        .log_internal_errors(false)
        .try_init();
    Ok(())
}

/// `EnvFilter` accepts any word as a target's name, so a misspelled level must be detected here.
fn parse(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',').map(str::trim) {
        if !directive.contains('=') && !LEVELS.contains(&directive.to_ascii_lowercase().as_str()) {
            let mut what = format!("{directive:?} is not a level");
            if let Some(meant) = nearest(directive, LEVELS) {
                what.push_str(&format!(" (did you mean {meant}?)"));
            }
            return Err(what);
        }
    }
    EnvFilter::try_new(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn levels_and_targets() {
        for good in [
            "off",
            "warn",
            "DEBUG",
            "hypernest::vcpu=trace,info",
            "a=off",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "debgu", "warn,", "x=y=z[", "hypernest=loud"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("debgu").unwrap_err().contains("mean debug?"));
    }
}
