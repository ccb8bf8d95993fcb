"""Training: state, step, loop and run directory."""
