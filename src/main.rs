//! hypernest.
fn main() {}
