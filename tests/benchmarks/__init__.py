"""Benchmarks: programs that start their own servers and measure against a baseline of the run."""
