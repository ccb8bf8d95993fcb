"""Eight simulated devices for every test, shapes checked for real, and where the real data lies."""

import os
from pathlib import Path

# Most of a test's time is compiling, of which LLVM's optimisations, for programs that then run once, are a large part.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
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


def pytest_collection_modifyitems(items):
    """Whole runs first: they are long, and at the end no worker is to wait for another."""
    items.sort(key=lambda item: "system" not in item.path.parts)
