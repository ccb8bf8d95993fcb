"""A training step of two aligned towers, against the same model in PyTorch.

Towers of width 384, depth 6 and 6 heads; images of 64 x 64 in patches of 8, 32 tokens of 8,192; a batch of 64; AdamW.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .runner import Benchmark, Ratio

if TYPE_CHECKING:
    from mmjax.config.experiment import Experiment

WIDTH, DEPTH, HEADS, SIDE, PATCH, LENGTH, VOCABULARY, BATCH = 384, 6, 6, 64, 8, 32, 8192, 64
# Steps of one measurement.
STEPS = 3


def experiment(dtype: str) -> "Experiment":
    """The model as an experiment; its data is never read."""
    from mmjax.config.experiment import Experiment
    from mmjax.config.train import Train
    from mmjax.data.inputs import ImageInput, TextInput
    from mmjax.data.loader import Data
    from mmjax.data.sources.scenes import Scenes
    from mmjax.data.tokenize import Bpe
    from mmjax.encoders import TextTransformer, ViT
    from mmjax.fusion import Sum
    from mmjax.heads import Contrast
    from mmjax.model import Model
    from mmjax.optim.optimizers import AdamW

    return Experiment(
        name="towers",
        data=Data(
            source=Scenes(),
            inputs={
                "image": ImageInput(size=SIDE),
                "text": TextInput(length=LENGTH, tokenizer=Bpe(vocabulary=VOCABULARY)),
            },
        ),
        model=Model(
            width=WIDTH,
            dtype=dtype,
            encoders={
                "image": ViT(patch=PATCH, depth=DEPTH, heads=HEADS),
                "text": TextTransformer(depth=DEPTH, heads=HEADS),
            },
            fusion=Sum(),
            outputs={"align": Contrast(first="image", second="text", size=WIDTH, heads=HEADS)},
            unroll=True,
        ),
        optimizer=AdamW(learning_rate=1e-4),
        train=Train(batch_size=BATCH),
    )


def ours(dtype: str) -> Callable[[], dict[str, float]]:
    """mmjax's training step."""
    import jax
    import numpy as np

    from mmjax.sharding.mesh import MeshShape, choose_rules
    from mmjax.training.train_program import TrainProgram

    asked = experiment(dtype)
    mesh = MeshShape().build()
    jax.set_mesh(mesh)
    program = TrainProgram(asked, asked.data, choose_rules(asked.rules, mesh))
    key = jax.random.key(0)
    state = program.init_from_key(key)
    rng = np.random.default_rng(0)

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        drawn = rng.integers(0, VOCABULARY, shape.shape) if shape.dtype == np.int32 else rng.random(shape.shape)
        return jax.device_put((drawn if shape.dtype != bool else drawn >= 0).astype(shape.dtype), shape.sharding)

    placed = jax.tree.map(fill, program.batch_shapes())
    compiled = program.compile_step(state, key, 1)

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, [placed], key)
        jax.block_until_ready((state, metrics))

    return _timed(run)


def _timed(run: Callable[[int], None]) -> Callable[[], dict[str, float]]:
    """Measures some steps after one that warms up an idle process."""

    def measure() -> dict[str, float]:
        run(1)
        began = time.perf_counter()
        run(STEPS)
        return {"step": (time.perf_counter() - began) / STEPS}

    return measure


def products(dtype: str) -> Callable[[], dict[str, float]]:
    """Large matrix products with as many FLOPs as a step: the most that JAX reaches."""
    import jax
    import jax.numpy as jnp

    from mmjax.sharding.mesh import MeshShape, choose_rules
    from mmjax.training.train_program import TrainProgram

    asked, size = experiment(dtype), 2048
    with jax.set_mesh(MeshShape().build()):
        program = TrainProgram(asked, asked.data, choose_rules(asked.rules, jax.sharding.get_mesh()))
        flops = program.model_flops
    matrix = jnp.full((size, size), 1 / size, jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    jax.block_until_ready(multiply(matrix, matrix))

    def run(steps: int) -> None:
        for _ in range(round(steps * flops / (2 * size**3))):
            jax.block_until_ready(multiply(matrix, matrix))

    return _timed(run)


def _siglip() -> Any:
    from transformers import SiglipConfig, SiglipModel

    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
    }
    vision = tower | {"image_size": SIDE, "patch_size": PATCH}
    text = tower | {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "projection_size": WIDTH}
    return SiglipModel(SiglipConfig(vision_config=vision, text_config=text))


def _peer(dtype: str, prepare: Callable[[Any], Any]) -> Callable[[], dict[str, float]]:
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _siglip().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = prepare(model)
    pictures = torch.rand(BATCH, 3, SIDE, SIDE, device=device)
    words = torch.randint(0, VOCABULARY, (BATCH, LENGTH), device=device)
    half = torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16")

    def work(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with half:
                loss = run(input_ids=words, pixel_values=pictures, return_loss=True).loss
            loss.backward()
            optimizer.step()
            float(loss.detach())

    return _timed(work)


def eager(dtype: str) -> Callable[[], dict[str, float]]:
    """SigLIP of `transformers`, without compilation."""
    return _peer(dtype, lambda model: model)


def compiled(dtype: str) -> Callable[[], dict[str, float]]:
    """SigLIP of `transformers` under torch.compile."""
    import torch

    return _peer(dtype, torch.compile)


BENCHMARK = Benchmark(
    about="a training step of two aligned towers, 26.5 M parameters",
    implementations={"mmjax": ours, "products": products, "torch": eager, "torch.compile": compiled},
    ratios=(
        Ratio("step over torch.compile's", "mmjax", "torch.compile", "step"),
        Ratio("step over torch's", "mmjax", "torch", "step"),
        Ratio("large products of as many FLOPs over the step", "products", "mmjax", "step"),
    ),
)
