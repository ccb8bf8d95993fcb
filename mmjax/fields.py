"""Metadata of the fields of configuration classes."""

OPERATIONAL = {"operational": True}
"""A field that says how a run is carried out, not what comes of it: it is left out of the fingerprint."""
