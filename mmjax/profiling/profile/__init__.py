"""Profiles: where the time and the memory of real steps go."""
