"""The commands: `python -m launch.NAME SUBJECT key=value ...`, run from the checkout."""

import os

# XLA reads it when JAX is imported. Its alarms about slow compiling are logged as errors; what fails is raised as well.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
