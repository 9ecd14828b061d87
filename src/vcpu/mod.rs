//! vCPU threads: run, classify, dispatch, count.
