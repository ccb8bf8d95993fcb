"""Retrieval with several captions a picture, against brute force and against one caption at a time."""

import json

import chz
import cv2
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.splits import SplitByFile
from mmjax.data.inputs import ImageInput, TextInput
from mmjax.data.loader import Data
from mmjax.encoders import TextTransformer, ViT
from mmjax.evaluation.captions import evaluate_more_texts, retrievals
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import EvalResult
from mmjax.evaluation.evaluator import Evaluator
from mmjax.evaluation.suites.standard import standard_metrics
from mmjax.fusion import Concat
from mmjax.heads import Contrast
from mmjax.metrics.retrieval import ranks
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw

RULES = PRESETS["data"]
COUNTS = (3, 1, 2, 3, 0, 1, 2)  # captions of each picture


def result_of(image, text, image_present, text_present) -> EvalResult:
    ids = tuple(f"test/{number}" for number in range(len(image)))
    predictions, present = {"pair": {"image": image, "text": text}}, {"image": image_present, "text": text_present}
    return EvalResult(ids, {}, predictions, {}, present, {}, {}, {"pair": ("image", "text")}, {}, {})


def test_any_caption_is_right_and_every_caption_asks():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(7, 4)), rng.normal(size=(7, 3, 4))
    image_present = np.array([True] * 6 + [False])
    text_present = np.arange(3) < np.array(COUNTS)[:, None]
    results = [result_of(image, text[:, n], image_present, text_present[:, n]) for n in range(3)]
    found = {way: ranks(*given) for way, given in retrievals(results[0], "pair", results[1:], "text")}

    captions = [(owner, text[owner, n]) for owner in range(7) for n in range(3) if text_present[owner, n]]
    to_text = []
    for owner in range(6):
        own = [image[owner] @ vector for who, vector in captions if who == owner]
        others = [image[owner] @ vector for who, vector in captions if who != owner]
        if own:
            to_text.append(1 + sum(other >= max(own) for other in others))
    to_image = [
        1 + sum(image[other] @ vector >= image[owner] @ vector for other in range(6) if other != owner)
        for owner, vector in captions
        if image_present[owner]
    ]
    assert found["image_to_text"].tolist() == to_text
    assert found["text_to_image"].tolist() == to_image


@pytest.fixture
def coco(tmp_path):
    """Pictures with none to three captions, as a COCO file, and the same with each picture's n-th caption alone."""
    rng = np.random.default_rng(1)
    images, annotations = [], []
    for number, count in enumerate(COUNTS):
        picture = cv2.imencode(".png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))[1]
        (tmp_path / f"{number}.png").write_bytes(picture.tobytes())
        images.append({"id": number, "file_name": f"{number}.png"})
        annotations += [{"image_id": number, "caption": f"caption {n} of {number}"} for n in range(count)]
    paths = {}
    for name in ("all", 0, 1, 2):
        kept = [each for each in annotations if name == "all" or each["caption"].startswith(f"caption {name} ")]
        paths[name] = tmp_path / f"captions_{name}.json"
        paths[name].write_text(json.dumps({"images": images, "annotations": kept}))
    return paths


def test_every_caption_is_evaluated(coco, tmp_path):
    split = SplitByFile(train="none*", test="captions*")
    inputs = {"image": ImageInput(size=16), "text": TextInput(length=24, field="captions")}
    data = Data(source=Manifest(path=str(coco["all"]), key="id", split=split), inputs=inputs, threads=0)
    config = Model(
        width=16,
        dtype="float32",
        encoders={"image": ViT(patch=8, depth=1, heads=2), "text": TextTransformer(depth=1, heads=2)},
        fusion=Concat(hidden=16),
        outputs={"pair": Contrast(first="image", second="text", kind="infonce", size=8, heads=2)},
    )
    mesh = MeshShape(data=1).build()
    with jax.set_mesh(mesh):
        model = draw(lambda rngs: config.build(data.features, rules=RULES, rngs=rngs))
        sharding = NamedSharding(mesh, RULES.spec("batch"))

        def evaluate(source):
            context = EvalContext(
                chz.replace(data, source=source), str(tmp_path), "test", 4, sharding, RULES, group_size=4
            )
            evaluator = Evaluator(context)
            (first,) = evaluator.evaluate(model)
            return context, first, evaluate_more_texts(context, evaluator, model)

        context, first, more = evaluate(data.source)
        assert [*more] == ["text"]
        results = [first, *more["text"]]
        assert len(results) == 3
        for n, result in enumerate(results):
            _, alone, none = evaluate(chz.replace(data.source, path=str(coco[n])))
            assert none == {}
            assert result.present["text"].tolist() == [count > n for count in COUNTS] == alone.present["text"].tolist()
            np.testing.assert_array_equal(result.predictions["pair"]["text"], alone.predictions["pair"]["text"])

        statistics = standard_metrics(context, model, first, more).statistics
    found = {way: ranks(*given) for way, given in retrievals(first, "pair", more["text"], "text")}
    assert len(found["image_to_text"]) == sum(count > 0 for count in COUNTS)
    assert len(found["text_to_image"]) == sum(COUNTS)
    for way, rank in found.items():
        statistic = statistics[f"pair/{way}_recall@1"]
        assert statistic.value == pytest.approx(np.mean(rank <= 1))
        assert len(statistic.columns) == len(COUNTS)
