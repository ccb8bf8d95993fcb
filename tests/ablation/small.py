"""The smallest ablation: two seeds of a tiny model on a few made-up examples."""

import json

from launch import ablate

TINY = (
    *("data.source.train=64", "data.source.validation=16", "data.source.test=40", "data.source.synergy=1"),
    *("model.width=16", "model.dtype=float32", "model.unroll=false"),
    *("model.encoders.a.heads=2", "model.encoders.b.heads=2"),
    *("train.steps=6", "train.batch_size=16", "train.log_every=2", "train.evaluate_every=3", "checkpoint.every=3"),
    *("seeds=2", "match=none", "mesh.data=1"),
)


def run(folder, data_dir, *words, code=0):
    """Run the command in this process; its exit code is `code`."""
    assert ablate.main(["interactions", *TINY, f"run_dir={folder}", f"data_dir={data_dir}", *words]) == code


def table_of(folder):
    return json.loads((folder / "table.json").read_text())
