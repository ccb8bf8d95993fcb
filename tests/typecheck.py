"""The type checker of the tests' import hook: beartype, to which paths in buckets are paths."""

from pathlib import Path

from beartype import BeartypeConf, FrozenDict, beartype
from upath import UPath

# A UPath has the methods of pathlib.Path, and is no subclass of it.
check_types = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Path: Path | UPath})))
