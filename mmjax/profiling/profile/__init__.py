"""Profiles: time and memory of real steps."""
