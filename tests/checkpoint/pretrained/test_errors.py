"""Folders that cannot be used are refused in one sentence that says what and where."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mmjax as mm
from mmjax.checkpoint.pretrained.load import Pretrained, import_weights, read_pretrained
from mmjax.errors import UserError

from . import models


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["bert"][1], tmp_path / "bert")


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def load(folder, **options):
    model = models.build(folder)
    return import_weights(model, Pretrained(path=str(folder), into="encoders.text", **options))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_another_architecture(folder):
    change(folder, model_type="resnet")
    with pytest.raises(UserError, match=r"config\.json is of an architecture 'resnet'; known are .*bert.*vit"):
        load(folder)


def test_pickles_are_refused_by_name(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, which may run code"):
        load(folder)


def test_a_truncated_file(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
        load(folder)


def test_tensors_that_are_missing_left_over_or_of_another_shape(folder):
    query = "encoder.layer.1.attention.self.query.weight"
    change_tensors(folder, lambda tensors: tensors.update({query: tensors[query][:, :16].copy()}))
    with pytest.raises(UserError, match=rf"{query} in .* has the shape \(32, 16\), .* stack/blocks/attention/query"):
        load(folder)
    change_tensors(folder, lambda tensors: tensors.pop(query))
    with pytest.raises(UserError, match=f"lacks the tensor {query}, which would become stack/blocks/attention/query"):
        load(folder)


def test_a_tensor_left_over(folder):
    change_tensors(folder, lambda tensors: tensors.update({"encoder.adapter": np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match=r"the tensor encoder\.adapter, which has no place in encoders\.text"):
        load(folder)


def test_layers_left_over(folder, folders):
    change(folder, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"the tensor encoder\.layer\.1\.\S+, which has no place"):
        load(folder)


def test_a_missing_shard(folder, folders):
    model = folders["bert"][0]
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    load(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=rf"lacks the shard {shard.name}"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(UserError, match="which is not a file in its folder"):
        load(folder)


def test_a_tokenizer_that_does_not_fit(folder):
    change(folder, vocab_size=40)
    with pytest.raises(UserError, match=r"tokenizer\.json has the id 59, which does not fit a vocabulary of 40"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load(folder)


def test_places_that_are_not_there(folder):
    model = models.build(folder)
    with pytest.raises(UserError, match=r"into=encoders\.sound is not a part of the model; it has encoders\.text"):
        import_weights(model, Pretrained(path=str(folder), into="encoders.sound"))
    with pytest.raises(UserError, match="has no part image; it has text"):
        load(folder, part="image")
    with pytest.raises(UserError, match="there is no folder"):
        read_pretrained(str(folder / "nowhere"))
    with pytest.raises(UserError, match="is a file; give the folder"):
        read_pretrained(str(folder / "config.json"))


def test_an_encoder_that_is_built_otherwise(folder):
    model = models.build(folder, block=mm.BlockOptions())
    with pytest.raises(UserError, match="built otherwise"):
        import_weights(model, Pretrained(path=str(folder), into="encoders.text"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": "bert"}', '{"model_type": "bert", "hidden_size": "a"}']
)
def test_a_damaged_config(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load(folder)
