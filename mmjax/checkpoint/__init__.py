"""Checkpoints: saving, checksums, restoring, starting from another run."""
