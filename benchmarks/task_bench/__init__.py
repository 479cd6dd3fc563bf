"""Tasks on the virtual station, for the benchmarks that measure what a policy achieves there."""
