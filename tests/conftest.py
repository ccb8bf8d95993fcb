"""Eight simulated devices for every test, shapes checked for real, and where the real data lies."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jaxtyping
import pytest

jaxtyping.install_import_hook("mmjax", "beartype.beartype")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how often the resumed run is killed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lies beside the checkout (see its SOURCES.md)."""
    return Path(__file__).resolve().parents[2] / "shared" / "data"
