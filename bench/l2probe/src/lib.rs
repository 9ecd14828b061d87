//! What the program `l2probe` writes, and how to read it.
//!
//! `l2probe` runs inside any Linux, a WSL2 among them, without root, and measures what its hypervisors cost it. Its result
//! is a [`document::Document`] in JSON; `hypernest-bench l2-exit --l1 manual` merges several into one report.

pub mod counts;
pub mod document;
