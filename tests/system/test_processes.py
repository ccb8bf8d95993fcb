"""Two processes of four devices do what one of eight does, on the way and after a checkpoint of each other."""

import json

import numpy as np

from tests.system.conftest import TINY, finish

STEPS = 12


def losses(run_dir):
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines}


def test_two_processes_are_one(tmp_path, data_dir):
    words = ("scenes", *TINY, f"data_dir={data_dir}", "mesh.fsdp=2", "mesh.tensor=2", "rules=fsdp_tensor")
    runs = {name: tmp_path / name for name in ("one", "two")}
    finish("train", *words, f"train.steps={STEPS}", f"run_dir={runs['one']}", devices=8)
    local = ("processes=2", "devices=4", "--", "train")
    output = finish("local", *local, *words, f"train.steps={STEPS}", f"run_dir={runs['two']}")
    assert output.splitlines()[-1] == str(runs["two"] / "summary.json")

    one, two = (json.loads((run / "summary.json").read_text()) for run in runs.values())
    assert one["examples_digest"] == two["examples_digest"]
    for name in one["metrics"]:
        np.testing.assert_allclose(one["metrics"][name], two["metrics"][name], rtol=1e-4, atol=1e-6, err_msg=name)
    one, two = (losses(run) for run in runs.values())
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-4)
