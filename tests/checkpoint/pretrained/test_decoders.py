"""Text decoders with the weights of language models write what `transformers` writes with them."""

import functools
import json
import re
import shutil

import chz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import mmjax as mm
from mmjax.checkpoint.pretrained.architectures import read_architecture
from mmjax.checkpoint.pretrained.load import Pretrained, import_weights, read_pretrained
from mmjax.checkpoint.pretrained.safetensors_folder import SafetensorsFolder
from mmjax.checkpoint.pretrained.tensor_map import Pieces, join_pieces
from mmjax.errors import UserError
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from mmjax.types import END, PADDING, Fused, Tokens
from tests.reference import draw

VOCABULARY, START, STOP = 59, 6, 7
LENGTH, CONTEXT = 10, 16
TOLERANCE = 1e-4
MESHES = {
    "one": (MeshShape(data=1), PRESETS["data"]),
    "fsdp_tensor": (MeshShape(data=2, fsdp=2, tensor=2), PRESETS["fsdp_tensor"]),
}

SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": START, "eos_token_id": STOP, "pad_token_id": STOP}
SMALL = SPECIAL | {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 20}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 20}


def gpt2(**options):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SPECIAL, **GPT2, **options))


def llama(**options):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**GROUPED, **options}))


MAKE = {
    "gpt2": gpt2,
    "gpt2_untied": lambda: gpt2(tie_word_embeddings=False, n_inner=40),
    "llama": lambda: llama(**ROPE),
    "llama_tied": lambda: llama(tie_word_embeddings=True, num_key_value_heads=4),
    "llama_biased": lambda: llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**GROUPED, **ROPE, sliding_window=None)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """By name, a model of `transformers` with random weights, and the folder in which it lies with its tokenizer."""
    root = tmp_path_factory.mktemp("decoders")

    @functools.cache
    def make(name):
        model, generator = MAKE[name]().eval(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(root / name)
        words = {f"w{id}": id for id in range(VOCABULARY) if id not in (START, STOP)}
        tokenizer = Tokenizer(models.WordLevel({**words, "[START]": START, "[STOP]": STOP}, unk_token="w5"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[START] $A", special_tokens=[("[START]", START)]
        )
        tokenizer.save(str(root / name / "tokenizer.json"))
        (root / name / "tokenizer_config.json").write_text(json.dumps({"bos_token": "[START]", "eos_token": "[STOP]"}))
        return model, root / name

    return make


def build(folder, rules=PRESETS["data"], length=LENGTH, gate=0.0, **changes):
    """A model of pictures, of another width, with the decoder of a folder as drawn; and the ids of its tokens there."""
    found = read_pretrained(str(folder))
    text = chz.replace(found.inputs["text"], length=length)
    config = mm.Model(
        encoders={"image": mm.ViT(depth=1, patch=4)},
        outputs={"caption": chz.replace(found.outputs["text"], **changes)},
        width=CONTEXT,
        dtype="float32",
    )
    features = {"image": mm.ImageInput(size=8, channels=1).feature, "text": text.feature}
    model = draw(lambda rngs: config.build(features, rules=rules, rngs=rngs))
    gates = model.outputs["caption"].decoder.stack.blocks
    gates.gate = gates.gate.replace(jnp.full_like(gates.gate[...], gate))  # at first 0, as tests/generators checks
    return model, np.array(text.tokenizer.order)


def load(folder, **options):
    """The decoder with the weights of a folder, the ids of its tokens there, and what is said."""
    lines = []
    model, order = build(folder, **options)
    into = Pretrained(path=str(folder), into="outputs.caption")
    return import_weights(model, into, say=lines.append).outputs["caption"], order, lines


def drawn(writer):
    """The parameters that a language model lacks: those of the cross-attention."""
    names = ("seen", "seen_norm", "context_norm", "gate")
    return [path for path, _ in named_leaves(writer) if set(names) & set(path.replace("mlp/gate", "").split("/"))]


def make_fused(rules=PRESETS["data"]):
    """Fused tokens of eight examples, of which the last has none."""
    values = np.random.default_rng(1).normal(size=(8, 3, CONTEXT)).astype(np.float32)
    mask = np.arange(3) < np.array([[3], [2], [1], [3], [2], [1], [3], [0]])
    tokens = Tokens(*jax.device_put((values, mask), rules.spec("batch")))
    return Fused(tokens, tokens.values[:, 0], {})


def make_ids():
    return np.random.default_rng(0).integers(1, VOCABULARY + 1, (8, LENGTH)).astype(np.int32)


def before(ids):
    """The token before each; padding starts a text."""
    return np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=PADDING)


@jax.jit
def logits_and_texts(writer, ids, fused):
    return writer(ids, fused, None), writer.predict(fused, None)["ids"]


@jax.jit
def step_by_step(writer, ids, fused):
    """The logits of every token, with a cache."""

    def step(cache, token):
        logits, cache = writer.step(*token, cache, fused.tokens.mask)
        return cache, logits

    cache = writer.decoder.init_cache(fused.tokens, ids.shape[1], writer.dtype)
    return jnp.swapaxes(jax.lax.scan(step, cache, (ids.T, jnp.arange(ids.shape[1])))[1], 0, 1)


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(MESHES["one"][0].build()) as mesh:
        yield mesh


@pytest.mark.parametrize("name", MAKE)
def test_the_same_logits_and_texts_whatever_is_seen(folder, name):
    model, path = folder(name)
    writer, order, lines = load(path)
    ids = make_ids()
    logits, written = map(np.asarray, logits_and_texts(writer, ids, make_fused()))
    with torch.no_grad():
        expected = model(torch.tensor(order[before(ids)])).logits.numpy()
        alone = model.generate(torch.tensor([[START]]), do_sample=False, max_new_tokens=LENGTH)[0, 1:].numpy()
    assert (len(order), order[PADDING], order[END]) == (VOCABULARY + 1, START, STOP)
    np.testing.assert_allclose(logits, expected[..., order], atol=TOLERANCE)
    for row in written:
        own = row[row != PADDING]
        assert order[own].tolist() == alone[: len(own)].tolist()
        assert len(own) == LENGTH or own[-1] == END
    assert re.fullmatch(
        rf"outputs.caption: \d+ parameters read from {path}, {len(drawn(writer))} stay as drawn", *lines
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_steps_equal_the_whole_pass(folder, name):
    """With the cross-attention open, whose result then differs from the language model's."""
    writer, _, _ = load(folder(name)[1], gate=0.5)
    ids, fused = make_ids(), make_fused()
    whole, _ = map(np.asarray, logits_and_texts(writer, ids, fused))
    np.testing.assert_allclose(step_by_step(writer, before(ids), fused)[..., 1:], whole[..., 1:], atol=TOLERANCE)
    closed, _ = map(np.asarray, logits_and_texts(load(folder(name)[1])[0], ids, fused))
    apart = np.abs(whole - closed).max((1, 2))
    assert apart[:-1].min() > 0.01
    assert apart[-1] < 1e-5


def test_on_a_mesh(folder):
    """Every device reads its own part, and the results are the same."""
    shape, rules = MESHES["fsdp_tensor"]
    path, ids = folder("llama")[1], make_ids()
    expected, texts = logits_and_texts(load(path)[0], ids, make_fused())
    with jax.set_mesh(shape.build()):
        writer, _, _ = load(path, rules=rules)
        kernel = writer.decoder.stack.blocks.mlp.up.kernel[...]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16, 22)}
        logits, written = logits_and_texts(writer, jax.device_put(ids, rules.spec("batch")), make_fused(rules))
        np.testing.assert_allclose(np.asarray(logits), np.asarray(expected), atol=1e-5)
        np.testing.assert_array_equal(np.asarray(written), np.asarray(texts))


def test_a_text_begins_after_its_start(folder):
    text = read_pretrained(str(folder("llama")[1])).inputs["text"]
    values, mask = text.read("w3 w0 w1 w59", None)
    assert [text.tokenizer.order[id] for id in values[mask]] == [3, 0, 1, 5, STOP]
    assert text.decode(values) == "w3 w0 w1 w5"
    assert PADDING not in values[mask]


def change(path, tmp_path, **settings):
    """A copy of a folder with other settings in config.json."""
    copy = shutil.copytree(path, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **settings}))
    return str(copy)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llama", {"head_dim": 16}, "head_dim=16"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type=llama3"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_type=linear"),
        ("llama", {"attention_bias": True}, "attention_bias and mlp_bias"),
        ("mistral", {"sliding_window": 12}, "sliding_window=12.*max_position_embeddings=20"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 12}, "sliding_window=12"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("llama", {"vocab_size": 40}, "does not fit a vocabulary of 40"),
        ("llama_tied", {"tie_word_embeddings": False}, r"lacks the tensor lm_head.weight, .*logits/kernel"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
    ],
)
def test_what_cannot_be_read(folder, tmp_path, name, settings, message):
    path = change(folder(name)[1], tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        load(path)


def test_what_is_built_otherwise(folder):
    path = folder("gpt2")[1]
    with pytest.raises(UserError, match="nothing for the parameter logits/kernel: the part is built otherwise"):
        load(path, tied=False)
    with pytest.raises(UserError, match="20 rows, where 24 are needed"):
        load(path, length=24)


def test_older_settings(folder, tmp_path):
    """The base of rotary positions beside the others, and a window that is not used."""
    path = change(folder("qwen2")[1], tmp_path, rope_theta=50.0, rope_parameters=None, sliding_window=4)
    assert read_pretrained(path).outputs["text"].block.rope == 50


def test_back_to_their_tensors(folder):
    """Of an untied projection, too, whose tokens are in another order here."""
    for name in ("gpt2_untied", "qwen2"):
        path = folder(name)[1]
        writer, _, _ = load(path, length=20)
        source = SafetensorsFolder(path)
        architecture, leaves, pieces = read_architecture(source.config, path), dict(named_leaves(writer)), Pieces(dict)
        for entry in architecture.parts["text"].entries:
            entry.write(np.asarray(leaves[entry.ours]), pieces)
        source.strip(architecture.prefix)
        tensors = join_pieces(pieces)
        assert set(tensors) == set(source.names)
        for each, values in tensors.items():
            np.testing.assert_array_equal(values, source.read(each, ()))
