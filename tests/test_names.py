"""`import mmjax as mm`: every configuration class is there, and importing it costs next to nothing."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mmjax as mm
from mmjax.config.schema import is_node

ROOT = Path(__file__).parents[1]


def test_every_configuration_class_is_there():
    classes = {}
    for found in pkgutil.walk_packages(mm.__path__, "mmjax."):
        module = importlib.import_module(found.name)
        own = [value for value in vars(module).values() if is_node(value) and value.__module__ == module.__name__]
        for cls in own:
            assert classes.setdefault(cls.__name__, cls) is cls, "two classes of one name"
    assert {name: getattr(mm, name) for name in mm._MODULES} == classes
    assert set(classes) <= set(dir(mm))


def test_everything_else_is_there():
    for name, module in mm._OTHERS.items():
        assert getattr(mm, name) is getattr(importlib.import_module(f"mmjax.{module}"), name)
    assert not set(mm._OTHERS) & set(mm._MODULES)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mmjax' has no attribute 'Experimant'"):
        _ = mm.Experimant
    assert not hasattr(mm, "__wrapped__")


def test_importing_it_is_quick_and_imports_no_jax():
    script = (
        "import sys, time; start = time.perf_counter(); import mmjax; seconds = time.perf_counter() - start; "
        "assert not {'jax', 'flax', 'numpy', 'chz'} & set(sys.modules); print(seconds)"
    )
    done = [subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True) for _ in range(3)]
    assert [run.stderr for run in done] == [""] * 3
    assert min(float(run.stdout) for run in done) < 0.1


def test_a_class_imports_its_own_module_when_it_is_used():
    script = (
        "import sys, mmjax as mm; assert 'mmjax.optim.schedules' not in sys.modules; "
        "from mmjax.optim.schedules import Cosine; assert mm.Cosine is Cosine"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
