//! The grouping of vCPUs, from an incomplete description.

use super::parse::Wrong;
use crate::cpuid::Topology;

/// xAPIC ids are 8 bits, and 255 is the broadcast.
pub(super) const MAX_CPUS: u32 = 255;

/// Fills in omitted values: the first of cores, sockets and threads that is not given gets the quotient, the
/// others are 1.
pub(super) fn topology(
    count: Option<u32>,
    sockets: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
) -> Result<(u32, Topology), Wrong> {
    let given = sockets.unwrap_or(1) * cores.unwrap_or(1) * threads.unwrap_or(1);
    let count = count.unwrap_or(given);
    if count > MAX_CPUS {
        return Err(Wrong::new(
            format!("the topology makes {count} CPUs"),
            format!("at most {MAX_CPUS}"),
        ));
    }
    let mut rest = count / given;
    let mut fill = |part: Option<u32>| part.unwrap_or_else(|| std::mem::replace(&mut rest, 1));
    let (cores_each, socket_count, threads_each) = (fill(cores), fill(sockets), fill(threads));
    if !count.is_multiple_of(given) || rest != 1 {
        let show = |part: Option<u32>| part.map_or("any".to_owned(), |n| n.to_string());
        return Err(Wrong::new(
            format!(
                "{count} CPUs cannot be {} sockets x {} cores x {} threads",
                show(sockets),
                show(cores),
                show(threads),
            ),
            "sockets x cores x threads = the number of CPUs",
        ));
    }
    let topology = Topology {
        sockets: socket_count,
        cores: cores_each,
        threads: threads_each,
    };
    Ok((count, topology))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// An accepted topology multiplies to the number of CPUs, whatever the input.
        #[test]
        fn accepted_topologies_multiply_up(
            count in proptest::option::of(1u32..=255),
            sockets in proptest::option::of(1u32..=255),
            cores in proptest::option::of(1u32..=255),
            threads in proptest::option::of(1u32..=255),
        ) {
            if let Ok((n, t)) = topology(count, sockets, cores, threads) {
                prop_assert_eq!(t.sockets * t.cores * t.threads, n);
                prop_assert!(count.is_none_or(|count| count == n));
                prop_assert!(sockets.is_none_or(|s| s == t.sockets));
                prop_assert!(cores.is_none_or(|c| c == t.cores));
                prop_assert!(threads.is_none_or(|x| x == t.threads));
            }
        }
    }
}
