"""A run that is built as CLIP is exported into a folder that `transformers` opens, with equal embeddings."""

import json

import chz
import numpy as np
import torch
import transformers

import mmjax as mm
from launch import export
from mmjax.inference import load
from tests.untrained import SMALLER, examples, write_experiment, write_run

from . import models


def test_transformers_embeds_alike(folders, tmp_path):
    clip = folders["clip"][1]
    config, inputs = models.configure(clip)
    experiment = mm.Experiment(
        name="clip",
        data=mm.Data(source=mm.Emoji(), inputs={name: inputs[name] for name in ("image", "text")}),
        model=chz.replace(config, outputs={"contrast": config.outputs["contrast"]}),
        optimizer=mm.AdamW(learning_rate=1e-3),
        train=mm.Train(steps=1, batch_size=2),
        run_dir=str(tmp_path / "run"),
        data_dir=str(tmp_path / "data"),
    )
    write_experiment(experiment)
    out = tmp_path / "out"
    assert export.main([experiment.run_dir, f"out={out}", "format=safetensors,huggingface", "quantize=int8"]) == 0
    loaded = transformers.AutoModel.from_pretrained(out / "huggingface").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "huggingface")
    images, texts = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8), ["w3 w4 w9", "w8"]
    with torch.no_grad():
        given = tokenizer(texts, padding=True, return_tensors="pt")
        expected = loaded(pixel_values=models.normalize(images / np.float32(255)), **given)
    found = load(experiment.run_dir).embed(image=[*images], text=texts)
    np.testing.assert_allclose(found["contrast/image"], expected.image_embeds, atol=1e-4)
    np.testing.assert_allclose(found["contrast/text"], expected.text_embeds, atol=1e-4)
    moved = json.loads((out / "export.json").read_text())["token_ids"]["text"]
    ids = [[moved.get(str(id), id) for id in row] for row in tokenizer(texts)["input_ids"]]
    tokenize = load(out).data.inputs["text"].tokenizer
    assert ids == [tokenize.encode(text) for text in texts]
    assert ", ".join(f"{there} is {here}" for there, here in moved.items()) in (out / "README.md").read_text()
    assert load(out).embed(image=examples(3)["image"])["contrast/image"].shape == (3, expected.image_embeds.shape[1])


def test_another_model_is_refused_and_nothing_is_written(tmp_path, capsys):
    write_run(tmp_path / "run", tmp_path / "data", *SMALLER, "model.encoders.speech=None")
    assert export.main([str(tmp_path / "run"), f"out={tmp_path / 'out'}", "format=huggingface"]) == 2
    assert "no Contrast with pooling=encoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
