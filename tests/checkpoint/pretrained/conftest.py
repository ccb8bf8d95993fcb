"""Models of other projects, written once for all tests of them."""

import numpy as np
import pytest
import transformers

from . import models

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PICTURES = {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Models by name, with their folders."""
    root, found = tmp_path_factory.mktemp("pretrained"), {}

    def add(name, model, tokens=None):
        folder = models.save(model, root / name)
        models.save_preprocessing(folder)
        if tokens:
            models.save_tokenizer(folder, **tokens)
        found[name] = (model, folder)

    text = {**SMALL, "vocab_size": models.VOCABULARY, "max_position_embeddings": 12}
    swish = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
    add("bert", transformers.BertModel(transformers.BertConfig(**text)), {"padding": 0, "end": 7, "start": 6})
    add("vit", transformers.ViTModel(transformers.ViTConfig(**SMALL, **PICTURES)))
    add("dinov2", transformers.Dinov2Model(transformers.Dinov2Config(**swish, **PICTURES)))
    gated = transformers.Dinov2Config(**swish, **PICTURES, use_swiglu_ffn=True)
    add("dinov2_gated", transformers.Dinov2Model(gated))
    registers = transformers.Dinov2WithRegistersConfig(**swish, **PICTURES, num_register_tokens=3)
    add("dinov2_registers", transformers.Dinov2WithRegistersModel(registers))
    special = {"bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 59}
    vision = {**SMALL, **PICTURES, "hidden_size": 24}
    clip = transformers.CLIPConfig(text_config={**text, **special}, vision_config=vision, projection_dim=20)
    add("clip", transformers.CLIPModel(clip), {"padding": 59, "end": 59, "start": 58})
    words = {**text, "projection_size": 24, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    add(
        "siglip",
        transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=vision)),
        {"padding": 1, "end": 1},
    )
    return found


@pytest.fixture(scope="session")
def pictures():
    return np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
