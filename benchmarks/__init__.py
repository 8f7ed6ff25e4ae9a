"""Benchmarks: each prints a ratio against a named baseline that is measured in the same run. See docs/benchmarks.md."""
