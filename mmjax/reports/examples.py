"""Examples with their predictions, as the report shows them."""

from collections.abc import Mapping

import numpy as np

from mmjax.data.inputs import TextInput
from mmjax.data.loader import Data, HostBatch
from mmjax.reports.run import Example, Prediction
from mmjax.types import Image, Label, Spectrogram, Vector

Predictions = dict[str, dict[str, np.ndarray]]


def show_examples(
    data: Data, host: HostBatch, predictions: Predictions, makes: Mapping[str, str], count: int = 12
) -> list[Example]:
    """The first examples of a batch: what went in, and what every output predicted beside what is true.

    `predictions` are those of the whole global batch, of which the host holds some rows; `makes` are
    the features that outputs predict, by output.
    """
    places = [place for place, real in enumerate(host.real) if real][:count]
    shown = {output: predicted for output, predicted in predictions.items() if makes.get(output) in data.inputs}
    return [_show(data, host, shown, makes, place) for place in places]


def _show(data: Data, host: HostBatch, predictions: Predictions, makes: Mapping[str, str], place: int) -> Example:
    images, texts, spectra = {}, {}, {}
    row = int(host.rows[place])
    for name, input in data.inputs.items():
        if not host.batch.present[name][place]:
            continue
        values = host.batch.values[name][place]
        match input.feature:
            case Image():
                images[name] = values
            case Spectrogram():
                spectra[name] = values[host.batch.mask[name][place]]
        if isinstance(input, TextInput):
            texts[name] = input.decode(values[host.batch.mask[name][place]])
    for output, predicted in predictions.items():
        if "values" in predicted:
            kind = images if isinstance(data.inputs[makes[output]].feature, Image) else spectra
            kind[f"{output}, made"] = predicted["values"][row]
    shown = [
        item
        for output, predicted in predictions.items()
        for item in _judge(data, host, place, row, output, makes[output], predicted)
    ]
    return Example(host.ids[row], images, texts, spectra, shown)


def _judge(
    data: Data, host: HostBatch, place: int, row: int, output: str, target: str, predicted: dict[str, np.ndarray]
) -> list[Prediction]:
    """What one output predicted of one example, slot by slot, beside the feature that it predicts."""
    if not host.batch.present[target][place]:
        return []
    input, truths = data.inputs[target], host.batch.values[target][place]
    if isinstance(input, TextInput) and "ids" in predicted:
        return [Prediction(output, input.decode(truths), input.decode(predicted["ids"][row]))]
    feature = input.feature
    slots = np.flatnonzero(host.batch.mask[target][place]) if target in host.batch.mask else np.zeros(0, int)
    result = []
    for slot in slots:
        title = output if len(slots) == 1 else f"{output} {slot + 1}"
        if isinstance(feature, Label) and "probabilities" in predicted:
            probabilities = predicted["probabilities"][row, slot]
            best = int(probabilities.argmax())
            names = feature.names
            result.append(Prediction(title, names[truths[slot]], names[best], float(probabilities[best])))
        elif isinstance(feature, Vector) and "mean" in predicted:
            mean, deviation = predicted["mean"][row, slot], predicted["deviation"][row, slot]
            said = ", ".join(f"{m:.2f} ± {d:.2f}" for m, d in zip(mean, deviation, strict=True))
            result.append(Prediction(title, ", ".join(f"{x:.2f}" for x in truths[slot]), said, exact=False))
    return result
