"""What a run's report shows of examples."""

import numpy as np

from mmjax.data.inputs import ImageInput, LabelInput, TextInput, VectorInput
from mmjax.data.loader import Data, Loader
from mmjax.data.sources.scenes import Scenes
from mmjax.data.tokenize import Bytes
from mmjax.reports.examples import example_sections


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
        # Each picture is most similar to the other's text.
        "pair": {"image": np.eye(2, 4), "text": np.eye(2, 4)[::-1]},
    }
    targets = {"caption": "text", "classes": "shape", "painting": "image"}
    examples, images, texts = example_sections(data, host, predictions, targets)
    first, second = examples.cards
    assert [picture.caption for picture in first.pictures] == ["image, true", "painting, generated"]
    (true, ((sentence, _),)), generated = first.words
    assert (true, generated) == ("text, true", ("caption, generated", [("a red ring", 0.0)]))
    assert sentence == data.inputs["text"].decode(host.batch.values["text"][0])
    ((kind, _, predicted, confidence, mark),) = first.tables[0].rows
    assert (kind.text, predicted, confidence, mark) == ("classes", "triangle", "100%", "✗")
    assert (kind.tone, first.note) == ("wrong", "0 of 1 right")
    assert second.words[1] == ("caption, generated", [("two stars", 0.0)])
    # Retrieval shows the query and what was found, the true one marked.
    assert [images.title, texts.title] == ["pair: image to text", "pair: text to image"]
    card = images.cards[0]
    assert card.note == "the true one is number 2"
    assert [picture.caption for picture in card.pictures] == ["query"]
    assert [name for name, _ in card.words] == ["1", "2 ✓"]
    assert card.words[1][1] == [(sentence, 0.0)]
    shown = [(picture.caption, picture.tone) for picture in texts.cards[0].pictures]
    assert shown == [("1", ""), ("2 ✓", "right")]


def test_vectors_are_drawn_true_against_predicted():
    inputs = {"position": VectorInput(size=2, slots=3)}
    data = Data(source=Scenes(train=4, validation=4, test=7, speech=False), inputs=inputs)
    host = Loader(data, "nowhere", "test", 2, rows=np.arange(2)).batch(0)
    truth = host.batch.values["position"]
    said = {"mean": truth + 0.1, "deviation": np.ones_like(truth)}
    examples, plots = example_sections(data, host, {"place": said}, {"place": "position"})
    (plot,) = plots.drawings
    assert plot.title == "place"
    assert [key.name for key in plot.legend] == ["number 1", "number 2"]
    slots = int(host.batch.mask["position"].sum())
    assert plot.svg.count("hue-0") >= slots
    assert sum(len(card.tables[0].rows) for card in examples.cards) == slots
    assert examples.cards[0].note == ""  # what is not exact is neither right nor wrong
