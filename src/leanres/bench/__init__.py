"""Benchmarks: a training step in parts, how cost scales, the same work by other libraries."""
