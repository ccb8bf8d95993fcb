"""Profiling: plans of steps that are only compiled, and profiles of steps that run."""
