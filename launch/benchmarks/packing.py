"""Packed and padded training of a text encoder, and batches of a packed mixture at any step.

The texts are the names of Unicode's symbols, which have up to 89 bytes and 27 on average. The encoder has width 256 and
depth 4; a batch has 128 names, which two processes read. The mixture has three sources and batches of 64.
"""

import functools
import itertools
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz

from mmjax.data.sources.base import Records, Source

from .runner import Benchmark, Ratio

WIDTH, DEPTH, HEADS, BATCH, ROW, STEPS = 256, 4, 4, 128, 256, 12


@functools.cache
def names() -> tuple[tuple[str, bool], ...]:
    """The names of symbols, and whether each is an arrow."""
    symbols = [chr(code) for code in range(0x2000, 0x1FBF0) if unicodedata.category(chr(code)) == "So"]
    found = [unicodedata.name(symbol, "").lower() for symbol in symbols]
    return tuple((name, "arrow" in name) for name in found if name)


class Names:
    """The names as records."""

    fingerprint = f"names/{unicodedata.unidata_version}"

    def __len__(self) -> int:
        return len(names())

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, arrow = names()[index]
        return {"text": name, "label": int(arrow)}

    def id(self, index: int) -> str:
        return f"train/{index}"


@chz.chz
class SymbolNames(Source):
    """The names as a source."""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def open(self, data_dir: str, split: str) -> Records:
        return Names()

    def prepare(self, data_dir: str, manual_dir: str | None = None) -> Path:
        return Path(data_dir)


def _step(dtype: str, packed: bool) -> Callable[[], dict[str, float]]:
    import jax

    from mmjax.config.experiment import Experiment
    from mmjax.config.train import Train
    from mmjax.data.batching.packing import PackedRows, Packing
    from mmjax.data.device_batches import DevicePrefetcher
    from mmjax.data.inputs import LabelInput, TextInput
    from mmjax.data.loader import Data, Loader
    from mmjax.encoders import TextTransformer
    from mmjax.fusion import Sum
    from mmjax.heads import Classify
    from mmjax.model import Model
    from mmjax.optim.optimizers import AdamW
    from mmjax.sharding.mesh import MeshShape, choose_rules
    from mmjax.training.train_program import TrainProgram

    longest = max(len(name.encode()) for name, _ in names()) + 1
    folder = tempfile.mkdtemp(prefix="benchmark-packing-")
    data = Data(
        source=SymbolNames(),
        inputs={"text": TextInput(length=longest), "label": LabelInput(names=("other", "arrow"))},
        packing=Packing(features={"text": PackedRows(length=ROW)}) if packed else None,
        workers=2,
    ).fit_packing(folder, BATCH, 10**6)
    model = Model(
        width=WIDTH,
        dtype=dtype,
        encoders={"text": TextTransformer(depth=DEPTH, heads=HEADS)},
        fusion=Sum(),
        outputs={"label": Classify(target="label")},
        unroll=True,
    )
    optimizer = AdamW(learning_rate=1e-4)
    experiment = Experiment(name="names", data=data, model=model, optimizer=optimizer, train=Train(batch_size=BATCH))
    mesh = MeshShape().build()
    jax.set_mesh(mesh)
    program = TrainProgram(experiment, data, choose_rules(experiment.rules, mesh))
    key = jax.random.key(0)
    state = program.init_from_key(key)
    compiled = program.compile_step(state, key, 1)
    batches = DevicePrefetcher(Loader(data, folder, "train", BATCH, seed=0), program.sharding, 0, 10**6)

    def run(steps: int) -> int:
        nonlocal state
        tokens = 0
        for _ in range(steps):
            batch = next(batches)
            tokens += int((batch.host.batch.mask["text"] > 0).sum())
            state, metrics = compiled(state, [batch.batch], key)
        jax.block_until_ready((state, metrics))
        return tokens

    def measure() -> dict[str, float]:
        run(2)
        began = time.perf_counter()
        tokens = run(STEPS)
        return {"token": (time.perf_counter() - began) / tokens}

    return measure


def packed(dtype: str) -> Callable[[], dict[str, float]]:
    """Several names in a row, with segments."""
    return _step(dtype, packed=True)


def padded(dtype: str) -> Callable[[], dict[str, float]]:
    """Each name in a row of its own, as long as the longest."""
    return _step(dtype, packed=False)


def _mixture(first: int) -> Callable[[], dict[str, float]]:
    from mmjax.data.batching.packing import PackedRows, Packing
    from mmjax.data.inputs import LabelInput, TextInput
    from mmjax.data.loader import Data, Loader
    from mmjax.data.mixture import Mixture, MixtureSource, MixtureStage

    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    sources = {name: MixtureSource(source=SymbolNames(), weight=weight) for name, weight in weights.items()}
    folder = tempfile.mkdtemp(prefix="benchmark-mixture-")
    data = Data(
        source=Mixture(sources=sources, stages=(MixtureStage(start=500, weights={"a": 0.2, "c": 0.8}),)),
        inputs={"text": TextInput(length=96), "label": LabelInput(names=("other", "arrow"))},
        packing=Packing(features={"text": PackedRows(length=ROW)}),
    ).fit_packing(folder, 64, 10**6)
    loader = Loader(data, folder, "train", 64, seed=0)
    loader.batch(first)
    steps = itertools.count(first, 1000)

    def measure() -> dict[str, float]:
        began = time.perf_counter()
        for step in itertools.islice(steps, 10):
            loader.batch(step)
        return {"batch": (time.perf_counter() - began) / 10}

    return measure


def far(dtype: str) -> Callable[[], dict[str, float]]:
    """Batches of a packed mixture, a thousand steps apart, from step 1,000,000 on."""
    return _mixture(10**6)


def near(dtype: str) -> Callable[[], dict[str, float]]:
    """The same from the first step on."""
    return _mixture(0)


BENCHMARK = Benchmark(
    about="training on captions, packed and padded",
    implementations={"packed": packed, "padded": padded, "mixture, far": far, "mixture, near": near},
    ratios=(
        Ratio("a caption's token, packed over padded", "packed", "padded", "token"),
        Ratio("a batch of a mixture at step 1,000,000 over one at step 0", "mixture, far", "mixture, near", "batch"),
    ),
)
