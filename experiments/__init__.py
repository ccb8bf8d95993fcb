"""The experiments: one per file, the function with its name."""
