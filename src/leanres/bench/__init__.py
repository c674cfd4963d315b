"""Benchmarks: a training step in parts, and how its time scales."""
