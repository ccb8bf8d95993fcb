"""A run of a mixture that is killed and resumed reads what it would have read, on whatever mesh."""

import json
import re
import signal
import time

import pytest

import mmjax as mm
from launch import prepare
from tests.system.conftest import ROOT, finish, start

EXPERIMENT = '''
import mmjax as mm


def mixed() -> mm.Experiment:
    """Three sources: one without text, one that is filtered, one of a later stage with a limit."""
    few = mm.Filtered(source=mm.Interactions(train=64, seed=1), where={"label": mm.Condition(maximum=1.0)})
    return mm.Experiment(
        name="mixed",
        data=mm.Data(
            source=mm.Mixture(
                sources={
                    "blind": mm.MixtureSource(source=mm.Interactions(train=40), weight=3.0, fields={"a": None}),
                    "few": mm.MixtureSource(source=few, weight=1.0),
                    "late": mm.MixtureSource(source=mm.Interactions(train=20, seed=2), weight=0.0, epochs=1.5),
                },
                stages=(mm.MixtureStage(start=12, weights={"late": 0.5, "few": 0.2}),),
            ),
            inputs={
                "a": mm.TextInput(length=8),
                "b": mm.ImageInput(size=16, channels=1, augment=mm.ImageAugment(flip=0.5)),
                "label": mm.LabelInput(names=tuple("0123456789abcdef")),
            },
        ),
        model=mm.Model(
            width=16,
            encoders={"a": mm.TextTransformer(depth=1, heads=2), "b": mm.ViT(depth=1, heads=2)},
            fusion=mm.Concat(),
            outputs={"label": mm.Classify(target="label")},
        ),
        optimizer=mm.AdamW(learning_rate=1e-3),
        train=mm.Train(steps=60, batch_size=16, log_every=1, evaluate_every=1000),
        checkpoint=mm.Checkpoint(every=4),
    )
'''


@pytest.mark.slow
def test_a_killed_mixture_resumes_exactly(tmp_path, data_dir):
    path = tmp_path / "mixed.py"
    path.write_text(EXPERIMENT)
    words = (path, f"data_dir={data_dir}", "model.dtype=float32")
    finish("train", *words, f"run_dir={tmp_path / 'whole'}", "data.workers=0")
    killed = (*words, f"run_dir={tmp_path / 'killed'}")
    process = start("train", *killed, "data.workers=1")
    while process.poll() is None and not (tmp_path / "killed" / "checkpoints" / "8").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    output = finish("train", *killed, "data.workers=0", "mesh.fsdp=2", devices=2)
    assert process.returncode == -signal.SIGKILL
    assert "resuming" in output
    whole, again = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed"))
    assert again["examples_digest"] == whole["examples_digest"]
    last = json.loads((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()[-1])
    # 12 steps of 16 at three to one; then 30 of `late` at five to two, and the rest of `few`.
    assert [last[f"data/{name}/examples"] for name in ("blind", "few", "late")] == [144, 60 * 16 - 144 - 30, 30]


def test_the_examples_of_the_docs_can_be_made():
    page = (ROOT / "docs" / "data.md").read_text()
    names = {"mm": mm}
    for code in re.findall(r"```python\n(def .*?)```", page, re.DOTALL):
        exec(code, names)
    mixture, filtered = names["several_sources"](), names["short_captions"]()
    assert [stage.start for stage in mixture.stages] == [10_000, 20_000]
    assert filtered.where["caption"].holds("a short one")
    assert not filtered.where["caption"].holds("A" * 9)


def test_the_command_of_the_docs_converts_what_is_kept(tmp_path):
    (line,) = re.findall(
        r"^mmjax (prepare convert .*source=Filtered.*)$", (ROOT / "docs" / "data.md").read_text(), re.M
    )
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"caption": f"number {n}", "score": n / 100}) + "\n" for n in range(100)))
    words = line.replace("captions.jsonl", str(path)).replace("out=good", f"out={tmp_path / 'good'}").split()
    assert prepare.main([*words[1:], f"data_dir={tmp_path}"]) == 0
    copy = mm.ArrayRecord(path=str(tmp_path / "good"))
    assert sum(len(copy.open("", split)) for split in copy.splits) == 50
