"""What a run's report shows of examples."""

import numpy as np

from mmjax.data.inputs import ImageInput, LabelInput, TextInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bytes
from mmjax.reports.examples import show_examples


def test_predictions_stand_beside_what_they_are_of_whatever_their_output_is_called():
    data = Data(
        source=Scenes(train=4, validation=4, test=7, speech=False),
        inputs={
            "image": ImageInput(size=16),
            "text": TextInput(length=80, tokenizer=Bytes()),
            "shape": LabelInput(names=("circle", "square", "triangle", "star", "cross", "ring"), field="count"),
        },
    )
    host = Loader(data, "nowhere", "test", 2, rows=np.arange(2)).batch(0)
    ids = [data.inputs["text"].read(text, None)[0] for text in ("a red ring", "two stars")]
    probabilities = np.eye(6)[None, [2, 3]].transpose(1, 0, 2)
    picture = np.full((2, 16, 16, 3), 0.5, np.float32)
    predictions = {
        "caption": {"ids": np.stack(ids)},
        "classes": {"probabilities": probabilities},
        "painting": {"values": picture},
        "pair": {"image": np.zeros((2, 4)), "text": np.zeros((2, 4))},
    }
    makes = {"caption": "text", "classes": "shape", "painting": "image"}
    first, second = show_examples(data, host, predictions, makes)
    assert set(first.images) == {"image", "painting, made"}
    caption, kind = first.predictions
    assert (caption.name, caption.truth, caption.predicted) == ("caption", first.texts["text"], "a red ring")
    assert (kind.name, kind.predicted, kind.confidence) == ("classes", "triangle", 1.0)
    assert [each.predicted for each in second.predictions] == ["two stars", "star"]
