"""What a prober asks: answers, in any batches, belong to their examples."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data
from mmjax.data.sources.drawing import SHAPES
from mmjax.data.sources.scenes import Scenes
from mmjax.encoders import ConvNet
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.probe import LinearProbe
from mmjax.fusion import Sum
from mmjax.heads import Classify
from mmjax.model import Model
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS
from tests.reference import draw


def test_answers_know_their_examples():
    """Examples with several slots have several answers; a last batch is filled up with none."""
    rules = PRESETS["data"]
    data = Data(
        source=Scenes(train=4, validation=4, test=9, speech=False),
        inputs={"image": ImageInput(size=8), "shape": LabelInput(names=SHAPES, slots=3)},
    )
    records = data.open("nowhere", "test")
    shapes = [records[index]["shape"] for index in range(9)]
    wanted = np.repeat(np.arange(9), [len(each) for each in shapes])
    assert len(set(map(len, shapes))) > 1
    with jax.set_mesh(MeshShape(data=1).build()):
        config = Model(
            encoders={"image": ConvNet()},
            outputs={"shape": Classify(target="shape")},
            fusion=Sum(),
            width=8,
            dtype="float32",
        )
        model = draw(lambda rngs: config.build(data.features, rules=rules, rngs=rngs))
        sharding = NamedSharding(jax.sharding.get_mesh(), rules.spec("batch"))
        contexts = [EvalContext(data, "nowhere", "test", size, sharding, rules) for size in (4, 9)]
        answers = [LinearProbe(context, "shape", "shape", count=1).predict(model) for context in contexts]
    for each in answers:
        np.testing.assert_array_equal(each.examples, wanted)
        np.testing.assert_array_equal(each.truth, np.concatenate(shapes))
        np.testing.assert_allclose(each.probabilities, answers[0].probabilities, atol=1e-5)
