"""The commands: `python -m launch.NAME SUBJECT key=value ...`, run from the checkout."""
