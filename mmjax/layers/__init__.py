"""Layers: where all parameters are made."""
