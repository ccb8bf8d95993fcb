"""Evaluation: a model on a held-out split, by suites."""
