"""Runs that start from pretrained weights, which stay frozen while their low-rank updates are trained."""

import json
import shutil

import chz
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from safetensors.numpy import load_file

import mmjax as mm
from launch.command_line import load_experiment
from mmjax.checkpoint.integrity import stored_fingerprints
from mmjax.checkpoint.manager import Checkpoint, Checkpoints
from mmjax.compilation import cache_compilations
from mmjax.config.overrides import resolve
from mmjax.errors import UserError
from mmjax.layers.lora import is_lora
from mmjax.layers.tree import named_leaves
from mmjax.sharding.mesh import choose_rules
from mmjax.training import loop
from mmjax.training.run_dir import RunDir
from mmjax.training.train_program import TrainProgram
from tests.ablation.small import TINY

PREFIX = "encoders/b/encoder/"
QUERY = f"{PREFIX}stack/blocks/attention/query"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a random ViT as `transformers` saves it."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
    config = transformers.ViTConfig(**sizes, num_channels=1, image_size=16, patch_size=8)
    folder = tmp_path_factory.mktemp("weights") / "vit"
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def experiment(weights, tmp_path_factory):
    """Text and picture; the picture's encoder is imported. Its queries and the fusion have low-rank updates."""
    folder = tmp_path_factory.mktemp("data")
    cache_compilations(str(folder))
    words = ["train.steps=4", "train.log_every=1", "checkpoint.every=2", "train.evaluate_every=4"]
    given = [word.partition("=")[0] for word in words]
    tiny = [word for word in TINY if not word.startswith(("seeds", "match", "model.encoders.b", *given))]
    plain = load_experiment("interactions")
    encoders = {"a": plain.model.encoders["a"], "b": mm.read_pretrained(str(weights)).encoders["image"]}
    plain = chz.replace(plain, model=chz.replace(plain.model, encoders=encoders, fusion=mm.Concat(hidden=8)))
    words += ["train.initialize=Pretrained", f"train.initialize.path={weights}"]
    words += ["train.initialize.into=encoders.b", "train.initialize.freeze=true"]
    words += ["model.lora.0=Lora", "model.lora.0.pattern=*/b/*/query", "model.lora.0.rank=2"]
    words += ["model.lora.1=Lora", "model.lora.1.pattern=fusion/up"]
    return resolve(plain, [*tiny, *words, f"data_dir={folder}"])


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    loop.train(chz.replace(experiment, run_dir=str(folder)))
    return folder


def numbers(model):
    return {name: np.asarray(leaf) for name, leaf in named_leaves(model)}


def query_there(weights):
    [name] = [name for name in load_file(weights / "model.safetensors") if name.endswith("query.weight")]
    return load_file(weights / "model.safetensors")[name].T.reshape(8, 2, 4)


def test_imported_parameters_stay_and_their_low_rank_updates_move(finished, weights):
    early, late = (numbers(mm.load(finished, step).model) for step in (2, 4))
    imported = {name for name in late if name.startswith(PREFIX) and not is_lora(name)}
    assert len(imported) == 22
    frozen = imported | {"fusion/up/kernel", "fusion/up/bias"}
    for name in frozen:
        np.testing.assert_array_equal(late[name], early[name], err_msg=name)
    np.testing.assert_array_equal(late[f"{QUERY}/kernel"][0], query_there(weights))
    for name in late.keys() - frozen - {"fusion/missing"}:  # nothing is missing
        assert not np.array_equal(late[name], early[name]), name
    fingerprints = stored_fingerprints(finished)
    checkpoints = Checkpoints(finished, Checkpoint(), fingerprints=fingerprints, warn=print, read_only=True)
    kept = [name for name in checkpoints.contents(4) if name.startswith("opt_state/")]
    checkpoints.close()
    assert any(name.endswith(f"{QUERY}/lora_a") for name in kept)
    assert not any(name.endswith(tuple(frozen)) for name in kept), "moments of what is frozen"


def test_merged_for_use_elsewhere(finished):
    run = mm.load(finished)
    given = {"a": ["ab", "c0d"], "b": [np.zeros((16, 16, 1), np.uint8), np.full((16, 16, 1), 200, np.uint8)]}
    before = run.embed(**given)["pooled"]
    run.model = mm.merge_lora(run.model)
    assert not any(map(is_lora, run.params))
    np.testing.assert_allclose(run.embed(**given)["pooled"], before, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_needs_the_folder_no_more(experiment, weights, finished, tmp_path):
    run_dir, away = shutil.copytree(finished, tmp_path / "run"), tmp_path / "away"
    told = json.loads((run_dir / "experiment.json").read_text())["experiment"]["train"]["initialize"]
    assert told["path"] == str(weights)
    shutil.rmtree(run_dir / "checkpoints" / "4")
    before = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").unlink()
    weights.rename(away)
    try:
        loop.train(chz.replace(experiment, run_dir=str(run_dir)))
    finally:
        away.rename(weights)
    after = json.loads((run_dir / "summary.json").read_text())
    assert after["parameters_digest"] == before["parameters_digest"]


def test_several_origins_in_order(experiment, weights, finished, tmp_path, capsys):
    """First what another run had, then the imported encoder."""
    other = mm.Initialize(run_dir=str(finished))
    pretrained = experiment.train.initialize
    train = chz.replace(experiment.train, initialize=(other, chz.replace(pretrained, freeze=False)))
    several = chz.replace(experiment, train=train, run_dir=str(tmp_path / "run"), seed=1)
    mesh = several.mesh.build()
    with jax.set_mesh(mesh):
        rules = choose_rules(several.rules, mesh)
        run = RunDir(several, NamedSharding(mesh, rules.spec("batch")))
        program = TrainProgram(several, run.data, rules)
        program.check_origins()
        model = numbers(program.init_state(run).model)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["initialised", "encoders.b:"]
    np.testing.assert_array_equal(model[f"{QUERY}/kernel"][0], query_there(weights))
    trained = numbers(mm.load(finished).model)
    for name in (f"{QUERY}/lora_b", "outputs/label/logits/kernel"):
        np.testing.assert_array_equal(model[name], trained[name])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model.lora.0.pattern=*/key/x"], "model.lora.0.pattern=*/key/x matches no linear layer; among them are "),
        (["train.initialize.into=encoders.c"], "initialize.into=encoders.c is not a part of the model; it has "),
        (["train.initialize.path=no/where"], "there is no folder no/where, "),
        (["train.initialize.part=text"], "has no part text; it has image"),
        (["train.initialize.into=encoders.a"], " the part is built otherwise"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_compiled(experiment, tmp_path, monkeypatch, words, line):
    monkeypatch.setattr(loop, "check_memory", lambda program: pytest.fail("all was accepted"))
    run_dir = tmp_path / "run"
    with pytest.raises(UserError) as error:
        loop.train(resolve(experiment, [*words, f"run_dir={run_dir}"]))
    assert line in str(error.value)
    assert not run_dir.exists()


def test_a_rank_of_zero_is_refused(experiment):
    with pytest.raises(UserError, match=r"^model.lora.0.rank=0: must be at least 1$"):
        resolve(experiment, ["model.lora.0.rank=0"])
