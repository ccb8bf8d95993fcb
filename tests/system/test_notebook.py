"""The notebook's cells and the loop in docs/python.md, run in order in a process of their own."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.system.conftest import ROOT, environment

RUN = """
import json, sys
import matplotlib
matplotlib.use("Agg")
namespace = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), "cell", "exec"), namespace)
print(json.dumps([list(namespace["vectors"].shape), namespace["scores"]]))
"""


def test_the_notebook_runs(tmp_path: Path):
    notebook = ROOT / "docs" / "notebook.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    surroundings = environment(1) | {"HOME": str(tmp_path)}
    words = [sys.executable, "-c", RUN, str(notebook)]
    done = subprocess.run(words, cwd=tmp_path, env=surroundings, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shape, scores = json.loads(done.stdout.splitlines()[-1])
    assert shape == [200, 32]
    assert min(scores.values()) > 0.9


def test_the_loop_of_ones_own_learns(tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    words = [sys.executable, "-c", code]
    output = subprocess.check_output(words, cwd=tmp_path, env=environment(1), text=True, timeout=120)
    assert float(output) < 1.0
