"""How fusions' FLOPs grow with the tokens, and how long small ones take."""

import json

import pytest
from flax import nnx

from mmjax.ablation import scaling as module
from mmjax.ablation.scaling import cost_scaling
from mmjax.errors import UserError
from mmjax.fusion import Bottleneck, Concat, CrossAttention, Experts, Mean, Resampler, SingleStream

MODALITIES = ("image", "text")
# So narrow that between 1024 and 4096 tokens what grows with their square outweighs what grows with them.
WIDTH = 32


def exponents(**fusions):
    return cost_scaling(fusions, MODALITIES, WIDTH, (8, 1024, 4096), timed=False)["exponents"]


def test_latents_make_the_cost_linear():
    found = exponents(bottleneck=Bottleneck(), resampler=Resampler(), concat=Concat())
    assert max(found.values()) <= 1.05
    assert found["bottleneck"] > 0.95


def test_attention_of_all_tokens_makes_it_quadratic():
    fusions = {
        "single": SingleStream(),
        "cross": CrossAttention(),
        "own": Bottleneck(self_attention=True),
        "experts": Experts(),
    }
    assert min(exponents(**fusions).values()) >= 1.8


def test_flops_by_hand():
    found = cost_scaling({"single": SingleStream(depth=2, heads=4)}, MODALITIES, WIDTH, (8, 16), timed=False)

    def by_hand(size):
        tokens = 2 * size
        # Four projections and a perceptron of four times the width; every pair of tokens, scored and mixed.
        block = 2 * tokens * (4 + 2 * 4) * WIDTH**2 + 2 * 2 * tokens**2 * WIDTH
        pool = 2 * (2 + 2 * tokens) * WIDTH**2 + 2 * 2 * tokens * WIDTH
        return 2 * block + pool

    assert found["flops"] == {"single": [by_hand(8), by_hand(16)]}
    assert found["tokens"] == [8, 16]
    assert found["seconds"] == {"single": [None, None]}


class Last(nnx.Module):
    """Multiplies nothing."""

    def __call__(self, streams, key):
        tokens = streams["text"]
        return tokens, tokens.values[:, -1], {}


def test_without_products_there_is_no_exponent(monkeypatch):
    monkeypatch.setattr(Mean, "build", lambda self, modalities, settings, rngs: Last())
    found = cost_scaling({"last": Mean()}, MODALITIES, WIDTH, (8, 16), timed=False)
    assert found["flops"] == {"last": [0, 0]}
    assert found["exponents"] == {"last": None}


def test_seconds_are_of_what_fits(monkeypatch):
    monkeypatch.setattr(module, "MEMORY_BYTES", 1e6)
    found = cost_scaling({"single": SingleStream(depth=1)}, MODALITIES, WIDTH, (4, 512), timed=True)
    short, long = found["seconds"]["single"]
    assert 0 < short < 60
    assert long is None
    assert json.loads(json.dumps(found)) == found


def test_what_cannot_be_built():
    with pytest.raises(UserError, match="does not divide"):
        cost_scaling({"single": SingleStream(heads=5)}, MODALITIES, WIDTH, timed=False)
