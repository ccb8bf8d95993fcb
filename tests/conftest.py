"""Eight simulated devices for every test, shapes checked for real, and where the real data lies."""

import os
from pathlib import Path

from tests.flags import flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags(8)}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jaxtyping
import pytest

from tests import typecheck

jaxtyping.install_import_hook("mmjax", f"{typecheck.__name__}.check_types")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how often the resumed run is killed")
    parser.addoption(
        "--fuzz", type=int, default=150, help="how many command lines, and files of each kind, are made up"
    )
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too: minutes each")
    parser.addoption("--damaged-files", type=int, default=1200, help="how many damaged files are read")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that lies beside the checkout (see its SOURCES.md)."""
    return Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes, and runs with --slow only")


def pytest_collection_modifyitems(config, items):
    """Whole runs first: they are long, and at the end no worker is to wait for another."""
    items.sort(key=lambda item: "system" not in item.path.parts)
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
