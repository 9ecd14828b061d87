//! The output of the program `l2probe`, and its parser.
//!
//! `l2probe` runs inside any Linux, such as WSL2, without root, and measures the cost of its hypervisors. Its
//! result is a [`document::Document`] in JSON; `hypernest-bench l2-exit --l1 manual` merges several into one
//! report.

pub mod counts;
pub mod document;
