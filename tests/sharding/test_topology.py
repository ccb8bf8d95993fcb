"""What is not asked of a TPU that is not there."""

import os
import subprocess
import sys

from mmjax.sharding.topology import ALONE, silence_libtpu


def test_libtpu_raises_no_alarm_where_there_is_no_tpu():
    """It is installed with the tests, and JAX tries it wherever JAX_PLATFORMS does not say otherwise."""
    unset = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    code = "import mmjax.sharding.mesh, jax; print(jax.default_backend())"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "host bounds" not in run.stderr
    assert "INVALID_ARGUMENT" not in run.stderr


def test_a_platform_that_was_chosen_stays(monkeypatch):
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    silence_libtpu()  # JAX was told what to use, as it tells itself where it finds a TPU
    assert ALONE.keys() & os.environ.keys() == {"TPU_SKIP_MDS_QUERY"}
