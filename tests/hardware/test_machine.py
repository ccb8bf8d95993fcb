"""What suits a platform."""

import sys
import types
from pathlib import Path

import jax
import pytest

from mmjax.hardware import machine
from mmjax.hardware.machine import Machine, machine_of, this_machine


@pytest.fixture
def host(monkeypatch):
    """Sets how many cores a host has, what its CPU can do, which JAX is installed, and what Python runs."""

    def make(cores=8, flags="avx512_bf16 amx_bf16 amx_tile", jax_version="0.12.0.1", main=machine):
        monkeypatch.setitem(sys.modules, "__main__", main)
        monkeypatch.setattr(machine, "usable_cores", lambda: cores)
        monkeypatch.setattr(machine, "version", lambda name: jax_version)
        monkeypatch.setattr(Path, "read_text", lambda path: f"flags\t\t: fpu {flags}\n")

    return make


@pytest.mark.parametrize(
    ("flags", "jax_version", "dtype"),
    [
        ("amx_bf16 amx_tile", "0.12.0.1", "bfloat16"),
        ("amx_bf16 amx_tile", "1.0.0", "bfloat16"),
        ("amx_bf16 amx_tile", "0.10.2", "float32"),
        ("amx_bf16 amx_tile", "0.11.9", "float32"),
        ("avx512_bf16", "0.12.0.1", "float32"),
    ],
)
def test_a_cpu_computes_in_what_it_multiplies_faster(host, flags, jax_version, dtype):
    host(flags=flags, jax_version=jax_version)
    assert machine_of("cpu") == Machine(dtype, unroll=True, workers=1)


def test_an_accelerator_computes_in_bfloat16_whatever_its_host(host):
    host(flags="", jax_version="0.10.2")
    assert machine_of("tpu") == machine_of("gpu") == Machine("bfloat16", unroll=False, workers=4)


@pytest.mark.parametrize(("platform", "workers"), [("cpu", [0, 1, 1]), ("gpu", [1, 1, 2])])
def test_a_host_of_few_cores_has_few_workers(host, platform, workers):
    found = []
    for cores in (1, 2, 4):
        host(cores=cores)
        found.append(machine_of(platform).workers)
    assert found == workers


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_script_and_a_notebook_have_no_workers(host, platform):
    host(main=types.ModuleType("__main__"))
    assert machine_of(platform).workers == 0


def test_this_machine_is_that_of_its_devices():
    assert this_machine() == machine_of(jax.default_backend())
