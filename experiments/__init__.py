"""The experiments: one a file, the function of its name."""
