"""Profiling: plans of steps that are compiled but not run, and profiles of steps that are."""
