"""Encoders with the weights of other projects compute what `transformers` computes with them."""

import numpy as np
import pytest
import torch

import mmjax as mm
from mmjax.checkpoint.pretrained.load import Pretrained, import_weights, read_pretrained

from . import models

TOLERANCE = 1e-4


def close(ours, theirs) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2_gated", "dinov2_registers"])
def test_image_encoders(folders, pictures, name):
    model, folder = folders[name]
    with torch.no_grad():
        expected = model(models.normalize(pictures)).last_hidden_state
    tokens = models.run(models.imported(folder, "image"), pictures)
    close(tokens.pooled, expected[:, 0])
    close(tokens.values, expected[:, -16:])


def test_bert(folders):
    model, folder = folders["bert"]
    ids, mask = np.random.default_rng(0).integers(8, 60, (2, 12)), np.arange(12) < np.array([[12], [7]])
    with torch.no_grad():
        expected = model(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int))).last_hidden_state
    tokens = models.run(models.imported(folder, "text"), models.our_ids(folder, ids, mask), mask)
    close(tokens.values[mask], expected[mask])
    close(tokens.pooled[1], expected[1, :7].mean(0))


def embeddings(folder, pictures, ids, mask):
    """The unit embeddings of pictures and texts by a model with both encoders and the contrast, and the model."""
    model = models.build(folder)
    for into in ("encoders.image", "encoders.text", "outputs.contrast"):
        model = import_weights(model, Pretrained(path=str(folder), into=into))
    streams = (
        models.run(model.encoders["image"], pictures),
        models.run(model.encoders["text"], models.our_ids(folder, ids, mask), mask),
    )
    return [model.outputs["contrast"].embed_modality(side, stream) for side, stream in enumerate(streams)], model


def test_clip(folders, pictures):
    model, folder = folders["clip"]
    ids, mask = np.random.default_rng(0).integers(2, 58, (2, 12)), np.arange(12) < np.array([[12], [9]])
    ids[0, -1] = 59
    ids[1, 8:] = 59
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(ids),
            pixel_values=models.normalize(pictures),
            attention_mask=torch.tensor(mask.astype(int)),
        )
    (image, text), ours = embeddings(folder, pictures, ids, mask)
    close(image, expected.image_embeds)
    close(text, expected.text_embeds)
    scale = np.exp(np.asarray(ours.outputs["contrast"].temperature[...]))
    close(scale * np.asarray(image) @ np.asarray(text).T, expected.logits_per_image)


def test_siglip(folders, pictures):
    model, folder = folders["siglip"]
    ids = np.random.default_rng(0).integers(2, 60, (2, 12))
    ids[0, -1] = 1
    ids[1, 8:] = 1  # the end, and then padding, which SigLIP reads like any token
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids), pixel_values=models.normalize(pictures))
    mask = np.arange(12) < np.array([[12], [9]])
    (image, text), ours = embeddings(folder, pictures, ids, mask)
    close(image, expected.image_embeds)
    close(text, expected.text_embeds)
    contrast = ours.outputs["contrast"]
    scale, bias = np.exp(np.asarray(contrast.temperature[...])), np.asarray(contrast.bias[...])
    close(scale * np.asarray(image) @ np.asarray(text).T + bias, expected.logits_per_image)


def test_settings_come_along(folders):
    found = read_pretrained(str(folders["clip"][1]))
    assert found.encoders["image"].mean == (0.4, 0.5, 0.6)
    assert found.inputs["image"].size == 32
    values, mask = found.inputs["text"].read("w3 w4", None)
    assert [found.inputs["text"].tokenizer.order[id] for id in values[mask]] == [58, 3, 4, 59]
    assert found.inputs["text"].decode(values) == "w3 w4"


def test_positions_of_larger_pictures_are_resized(folders):
    folder = folders["vit"][1]
    encoder = models.imported(folder, "image", image=mm.ImageInput(size=48))
    assert encoder.position.shape == (6, 6, 32)
    own = models.imported(folder, "image")
    np.testing.assert_allclose(
        np.asarray(encoder.position[...]).mean(), np.asarray(own.position[...]).mean(), atol=0.02
    )
