"""Parts of `benchmarks.surfaces`."""
