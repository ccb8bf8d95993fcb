"""Small models of `transformers` with random weights, and their tokenizers, in folders as Hugging Face writes them."""

import functools
import json
from pathlib import Path
from typing import Any

import chz
import jax
import jax.numpy as jnp
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import mmjax as mm
from mmjax.checkpoint.pretrained.load import Pretrained, import_weights, read_pretrained
from mmjax.model import Multimodal, build_model
from mmjax.sharding.rules import PRESETS, Rules

RULES = PRESETS["fsdp"]
VOCABULARY = 60
NORMALIZED = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Writes the model with weights drawn at random, norms and biases, too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder, **options)
    return folder


def save_tokenizer(folder: Path, *, padding: int, end: int, start: int | None = None) -> None:
    """Writes a tokenizer of words w0, w1, ... whose special tokens have these ids."""
    words = {f"w{id}": id for id in range(VOCABULARY)}
    names = {padding: "[PAD]", end: "[END]"} | ({} if start is None else {start: "[START]"})
    words = {names.get(id, word): id for word, id in words.items()}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w5"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*names.values()])
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[START] $A [END]", special_tokens=[("[START]", start), ("[END]", end)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"pad_token": names[padding], "eos_token": "[END]", "bos_token": names.get(start)}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))


def save_preprocessing(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(NORMALIZED))


def normalize(pixels: np.ndarray) -> torch.Tensor:
    """Pictures Float[B H W C] in [0, 1] as a model of `transformers` takes them."""
    scaled = (pixels - np.array(NORMALIZED["image_mean"])) / np.array(NORMALIZED["image_std"])
    return torch.tensor(scaled.transpose(0, 3, 1, 2).astype(np.float32))


def configure(folder: Path, width: int = 16, **inputs: Any) -> tuple[mm.Model, dict[str, Any]]:
    """A model of another width with the folder's encoders and outputs, and the inputs by name."""
    found = read_pretrained(str(folder))
    outputs = {"label": mm.Classify(target="label"), **found.outputs}
    config = mm.Model(encoders=dict(found.encoders), outputs=outputs, width=width, dtype="float32")
    return config, {**found.inputs, "label": mm.LabelInput(names=("a", "b")), **inputs}


def build(folder: Path, *, rules: Rules = RULES, block: mm.BlockOptions | None = None, **inputs: Any) -> Multimodal:
    """That model, as drawn; with other options of its blocks, if some are given."""
    config, inputs = configure(folder, **inputs)
    if block is not None:
        encoders = {name: chz.replace(encoder, block=block) for name, encoder in config.encoders.items()}
        config = chz.replace(config, encoders=encoders)
    features = {name: input.feature for name, input in inputs.items()}
    return jax.jit(functools.partial(build_model, model=config, features=features, rules=rules))(jax.random.key(0))


def run(module: Any, values: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """The tokens of an encoder."""
    compiled = jax.jit(lambda module, values, mask: module(values, mask, None)[0])
    return compiled(module, jnp.asarray(values), None if mask is None else jnp.asarray(mask))


def imported(folder: Path, modality: str, **inputs: Any) -> Any:
    """The encoder of a modality with the weights of the folder, in front of its projection."""
    model = import_weights(build(folder, **inputs), Pretrained(path=str(folder), into=f"encoders.{modality}"))
    return model.encoders[modality].encoder


def our_ids(folder: Path, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Token ids of the folder's model as ours; 0 where the mask is false."""
    order = read_pretrained(str(folder)).inputs["text"].tokenizer.order
    places = {there: here for here, there in reversed(list(enumerate(order)))}
    places |= {there: here for here, there in enumerate(order) if here}
    found = np.vectorize(places.__getitem__)(ids)
    return found if mask is None else np.where(mask, found, 0)
