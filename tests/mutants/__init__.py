"""The table of `tests.mutations`: one wrong formula, gradient, mask, seed or offset each, and the tests that see it.

By (file below mmjax/, pytest's arguments below tests/): name -> (what stands there once, what is put in its place).
"""

from . import checkpoint, config, data, evaluation, generators, layers, profiling, training

MUTANTS: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    key: mutants
    for room in (generators, layers, training, checkpoint, data, evaluation, profiling, config)
    for key, mutants in room.MUTANTS.items()
}
