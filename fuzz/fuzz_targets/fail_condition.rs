//! Conditions of `hypernest-bench compare --fail-if`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the target reads and writes; it does not judge")]
#[path = "../../bench/src/compare/expression.rs"]
mod expression;

use expression::Expression;

fuzz_target!(|text: &str| {
    if let Ok(condition) = text.parse::<Expression>() {
        assert_eq!(condition.to_string().parse(), Ok(condition));
    }
});
