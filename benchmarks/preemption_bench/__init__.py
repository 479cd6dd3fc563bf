"""Parts of `benchmarks.preemption`."""
