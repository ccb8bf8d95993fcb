"""Images and spectrograms generated as sequences of codes."""

import chz
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmjax.generators.canvas import Canvas, make_canvas
from mmjax.generators.decoding import Decoding
from mmjax.generators.text import TextDecoder, TextDecoderModule
from mmjax.generators.vq import VqModule, VqVae
from mmjax.layers.attention import check_heads
from mmjax.layers.patches import reshape
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import reshard
from mmjax.types import END, Average, Batch, Feature, Fused, Metrics, Text

# The ids of padding and end come before those of codes.
BEFORE = END + 1


@chz.chz
class CodeDecoder(VqVae):
    """Autoregressive transformer over an image's or a spectrogram's codes, row by row.

    It attends to the fused tokens. The tokenizer, a `VqVae`, is trained at the same time: the loss is its own plus -log
    p(code | previous codes, fused) per code (van den Oord et al. 2017, section 3.3; with a transformer, Esser et al.
    2021). No gradient of the transformer reaches the tokenizer.
    """

    depth: int = chz.field(default=4, doc="decoder blocks")
    heads: int = chz.field(default=4, doc="attention heads")
    decoding: Decoding = chz.field(
        default=Decoding(temperature=1.0), doc="how predictions are decoded; greedy in evaluations"
    )

    @property
    def target_feature(self) -> str:
        return self.target

    @property
    def is_autoregressive(self) -> bool:
        return True

    def build(self, features: dict[str, Feature], settings: Settings, rngs: nnx.Rngs) -> "CodeDecoderModule":
        check_heads("CodeDecoder", self.heads, settings.width)
        return CodeDecoderModule(self, make_canvas("CodeDecoder", self.target, self.widths, features), settings, rngs)


class CodeDecoderModule(VqModule):
    """See `CodeDecoder`."""

    def __init__(self, config: CodeDecoder, canvas: Canvas, settings: Settings, rngs: nnx.Rngs):
        super().__init__(config, canvas, settings, rngs)
        rows, columns = (side // canvas.unit for side in canvas.shape)
        text = Text(rows * columns, self.quantizer.size + BEFORE)
        decoder = TextDecoder(target=config.target, depth=config.depth, heads=config.heads)
        self.writer = TextDecoderModule(decoder, text, settings, rngs)
        self.grid, self.decoding, self.rules = (rows, columns), config.decoding, settings.rules

    def loss(
        self, fused: Fused, batch: Batch, key: jax.Array | None, step: Int[Array, ""] | None
    ) -> tuple[Average, Metrics]:
        code_key, write_key = (None, None) if key is None else jax.random.split(key)
        tokenizer, metrics = super().loss(fused, batch, code_key, step)
        rows, columns = self.grid
        ids = reshape(self.encode(batch), rows * columns, rules=self.rules) + BEFORE
        logits = self.writer(jax.lax.stop_gradient(ids), fused, write_key)
        size = self.canvas.size(batch)
        hot = reshard(jax.nn.one_hot(ids, logits.shape[-1]), jax.typeof(logits).sharding.spec)
        losses = (jax.nn.logsumexp(logits, -1) - jnp.sum(logits * hot, -1)).mean(1)
        right = (logits.argmax(-1) == ids).astype(jnp.float32).mean(1)
        writing = Average.of(losses, size)
        loss = Average(tokenizer.totals + writing.totals, tokenizer.weights)
        return loss, {**metrics, "codes": writing, "accuracy": Average.of(right, size)}

    def predict(self, fused: Fused, key: jax.Array | None) -> dict[str, Array]:
        return {"values": self.sample(fused, key, self.decoding)}

    def sample(self, fused: Fused, key: jax.Array | None, decoding: Decoding) -> Float[Array, "B ..."]:
        """One image or spectrogram per example, as values of the feature."""
        # An end, which no training has shown, counts as the first code.
        codes = jnp.maximum(self.writer.sample(fused, key, decoding) - BEFORE, 0)
        return self.decode(reshape(codes, *self.grid, rules=self.rules))
