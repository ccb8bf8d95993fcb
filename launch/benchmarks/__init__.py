"""Benchmarks of launch.benchmark, one per file, with their implementations and comparisons."""
