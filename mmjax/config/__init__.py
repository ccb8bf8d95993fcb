"""Configuration: an experiment, its tree, JSON and command-line keys."""
