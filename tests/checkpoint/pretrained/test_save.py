"""What is written in Hugging Face's layout is read by `transformers`, and read back bit by bit."""

import chz
import jax
import numpy as np
import pytest
import torch
import transformers

import mmjax as mm
from mmjax.checkpoint.pretrained.load import Pretrained, import_weights
from mmjax.checkpoint.pretrained.save import save_pretrained
from mmjax.errors import UserError
from mmjax.layers.tree import named_leaves

from . import models
from .test_architectures import close, embeddings


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_there_and_back(folders, name, tmp_path, pictures):
    folder = folders[name][1]
    config, inputs = models.configure(folder)
    model = models.build(folder)
    save_pretrained(model, config, inputs, tmp_path / "out")
    back = models.build(tmp_path / "out")
    zeros = jax.tree.map(lambda leaf: leaf * 0, back)
    for into in ("encoders.image", "encoders.text", "outputs.contrast"):
        zeros = import_weights(zeros, Pretrained(path=str(tmp_path / "out"), into=into))
    read = dict(named_leaves(zeros))
    table = "encoders/text/encoder/embed/table"
    for path, leaf in named_leaves(model):
        if "/encoder/" in path or path.startswith("outputs/contrast"):
            # Padding without a row of its own is a copy of the end's.
            one, other = (np.asarray(each)[1:] if path == table else np.asarray(each) for each in (leaf, read[path]))
            np.testing.assert_array_equal(one, other, err_msg=path)

    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    ids = np.random.default_rng(0).integers(2, 58, (2, 12))
    ids[:, -1] = {"clip": 59, "siglip": 1}[name]
    with torch.no_grad():
        expected = loaded(input_ids=torch.tensor(ids), pixel_values=models.normalize(pictures))
    (image, text), _ = embeddings(tmp_path / "out", pictures, ids, np.ones((2, 12), bool))
    close(image, expected.image_embeds)
    close(text, expected.text_embeds)
    processor = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert processor("w3 w4")["input_ids"][-1] == {"clip": 59, "siglip": 1}[name] or name == "siglip"


def test_only_what_is_built_like_them(folders, tmp_path):
    config, inputs = models.configure(folders["clip"][1])
    model = models.build(folders["clip"][1])
    image = chz.replace(config.encoders["image"], registers=2)
    other = chz.replace(config, encoders={**config.encoders, "image": image})
    with pytest.raises(UserError, match=r"encoders\.image\.registers=2 is not what CLIP"):
        save_pretrained(model, other, inputs, tmp_path / "out")
    plain = chz.replace(config, outputs={"label": mm.Classify(target="label")})
    with pytest.raises(UserError, match="no Contrast with pooling=encoder"):
        save_pretrained(model, plain, inputs, tmp_path / "out")
    assert not list(tmp_path.iterdir())
