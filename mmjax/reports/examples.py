"""Examples with what the model made of them, as sections of the report."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data.batching.host_batch import HostBatch
from mmjax.data.inputs import Input, TextInput
from mmjax.data.loader import Data
from mmjax.reports.page import Card, Cell, Drawing, Key, Picture, Section, Table
from mmjax.reports.plots import picture_uri, regression_svg, spectrum_uri
from mmjax.types import Image, Label, Spectrogram, Vector

# What keeps the page below 2 MB.
LARGEST_SIZE = 1_000_000
LONGEST_TEXT = 600
QUERIES, RESULTS = 6, 5

Predictions = Mapping[str, Mapping[str, np.ndarray]]


class Seen(NamedTuple):
    """What can be shown of an example's features: pictures as data URIs, and texts."""

    pictures: dict[str, str]
    texts: dict[str, str]


def example_sections(
    data: Data, host: HostBatch, predictions: Predictions, targets: Mapping[str, str], count: int = 8
) -> list[Section]:
    """The first examples of a batch with all predictions, regression plots, and retrieval.

    `predictions` are those of the whole global batch, of which the host holds some rows; `targets` are the features
    that outputs predict, by output. Outputs that embed features are those whose predictions are called like these.
    """
    real = [place for place, real in enumerate(host.real) if real]
    seen = [_see(data, host, place) for place in real]
    shown = {output: predicted for output, predicted in predictions.items() if targets.get(output) in data.inputs}
    cards = [
        _card(data, host, shown, targets, place, features) for place, features in zip(real[:count], seen, strict=False)
    ]
    fitting = _fitting(cards)
    left_out = len(cards) - len(fitting)
    about = f"{left_out} more left out to keep the page small." if left_out else ""
    sections = [Section("Examples", about, cards=fitting)] if cards else []
    plots = [
        drawing
        for output, predicted in shown.items()
        if (drawing := _regression(data, host, real, output, targets[output], predicted)) is not None
    ]
    if plots:
        about = f"Of {len(real):,} examples of the last batch; on the line both are equal."
        sections.append(Section("True and predicted values", about, drawings=plots))
    for output, predicted in predictions.items():
        if len(predicted) == 2 and set(predicted) <= set(data.inputs):
            sections += _retrieval(host, real, seen, output, predicted)
    return sections


def _fitting(cards: Sequence[Card]) -> list[Card]:
    """As many cards as the page may hold."""
    # The marks around its parts are about as long as a card's JSON says, and a little more.
    sizes = np.cumsum([len(json.dumps([card.pictures, card.words, str(card.tables)])) + 1000 for card in cards])
    return [card for card, size in zip(cards, sizes, strict=True) if size <= LARGEST_SIZE]


def _see(data: Data, host: HostBatch, place: int) -> Seen:
    pictures: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, input in data.inputs.items():
        if host.batch.present[name][place]:
            values = host.batch.values[name][place]
            if isinstance(input, TextInput):
                texts[name] = _shortened(input.decode(values[host.batch.mask[name][place]]))
            else:
                mask = host.batch.mask[name][place] if name in host.batch.mask else None
                uri = _draw(input, values, mask)
                pictures |= {} if uri is None else {name: uri}
    return Seen(pictures, texts)


def _draw(input: Input, values: np.ndarray, mask: np.ndarray | None) -> str | None:
    match input.feature:
        case Image():
            return picture_uri(values)
        case Spectrogram():
            return spectrum_uri(values if mask is None else values[mask])
    return None


def _card(
    data: Data, host: HostBatch, predictions: Predictions, targets: Mapping[str, str], place: int, seen: Seen
) -> Card:
    """One example: each feature beside what was generated of it, and a table of what was predicted."""
    row = int(host.rows[place])
    pictures, words, rows = [], [], []
    for name in data.inputs:
        makers = [output for output in predictions if targets[output] == name]
        made = [output for output in makers if "values" in predictions[output]]
        if name in seen.pictures:
            pictures.append(Picture(seen.pictures[name], f"{name}, true" if made else name))
        for output in made:
            predicted = predictions[output]
            uri = _draw(
                data.inputs[name], predicted["values"][row], predicted["mask"][row] if "mask" in predicted else None
            )
            pictures += [Picture(uri, f"{output}, generated")] if uri is not None else []
        if name in seen.texts:
            written = [output for output in makers if "ids" in predictions[output]]
            words.append((f"{name}, true" if written else name, [(seen.texts[name], 0.0)]))
            for output in written:
                input = data.inputs[name]
                assert isinstance(input, TextInput)
                text = _shortened(input.decode(predictions[output]["ids"][row])) or "(nothing)"
                words.append((f"{output}, generated", [(text, 0.0)]))
        for output in makers:
            rows += _predicted(data.inputs[name], host, place, row, output, name, predictions[output])
    judged = [cells[-1] for cells in rows if cells[-1]]
    note = f"{judged.count('✓')} of {len(judged)} right" if judged else ""
    table = [Table(["output", "true", "predicted", "confidence", ""], rows)] if rows else []
    return Card(host.ids[row], pictures, words, note=note, tables=table)


def _predicted(
    input: Input, host: HostBatch, place: int, row: int, output: str, target: str, predicted: Mapping[str, np.ndarray]
) -> list[list[str | Cell]]:
    """What one output predicted of one example, slot by slot, beside the true answers."""
    if not host.batch.present[target][place] or not {"probabilities", "mean"} & set(predicted):
        return []
    truths = host.batch.values[target][place]
    slots = np.flatnonzero(host.batch.mask[target][place])
    rows: list[list[str | Cell]] = []
    for slot in slots:
        title = output if len(slots) == 1 else f"{output} {slot + 1}"
        match input.feature:
            case Label(names, _):
                probabilities = predicted["probabilities"][row, slot]
                best = int(probabilities.argmax())
                right = best == truths[slot]
                tone = "right" if right else "wrong"
                head, mark = Cell(title, tone=tone), "✓" if right else "✗"
                rows.append([head, names[truths[slot]], names[best], f"{probabilities[best]:.0%}", mark])
            case Vector():
                pairs = zip(predicted["mean"][row, slot], predicted["deviation"][row, slot], strict=True)
                values = ", ".join(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in pairs)
                rows.append([title, ", ".join(f"{x:.2f}" for x in truths[slot]), values, "", ""])
    return rows


def _regression(
    data: Data, host: HostBatch, real: Sequence[int], output: str, target: str, predicted: Mapping[str, np.ndarray]
) -> Drawing | None:
    """True and predicted values of a batch; None where the output predicts no numbers."""
    if not isinstance(data.inputs[target].feature, Vector) or "mean" not in predicted:
        return None
    places = [place for place in real if host.batch.present[target][place]]
    there = host.batch.mask[target][places]
    truth = host.batch.values[target][places][there]
    means = predicted["mean"][host.rows[places]][there]
    legend = [Key(f"number {place + 1}", place % 8) for place in range(truth.shape[1])]
    return Drawing(regression_svg(truth, means), output, legend if len(legend) > 1 else ())


def _retrieval(
    host: HostBatch, real: Sequence[int], seen: Sequence[Seen], output: str, predicted: Mapping[str, np.ndarray]
) -> list[Section]:
    """What is found of one modality by the other, the true one marked, among the examples of a batch."""
    there = [k for k, each in enumerate(seen) if set(predicted) <= {*each.pictures, *each.texts}]
    if len(there) < 2:
        return []
    rows = host.rows[[real[k] for k in there]]
    sections = []
    for query, gallery in (tuple(predicted), tuple(predicted)[::-1]):
        order = np.argsort(-(predicted[query][rows] @ predicted[gallery][rows].T), axis=1)
        cards = []
        for index, ranked in enumerate(order[:QUERIES].tolist()):
            shown = [("query", "", seen[there[index]], query)]
            for place, other in enumerate(ranked[:RESULTS], 1):
                mark, tone = (" ✓", "right") if other == index else ("", "")
                shown.append((f"{place}{mark}", tone, seen[there[other]], gallery))
            pictures = [
                Picture(each.pictures[name], caption, tone=tone)
                for caption, tone, each, name in shown
                if name in each.pictures
            ]
            words = [(caption, [(each.texts[name], 0.0)]) for caption, _, each, name in shown if name in each.texts]
            note = f"the true one is number {ranked.index(index) + 1}"
            cards.append(Card(host.ids[int(rows[index])], pictures, words, note=note))
        about = (
            f"The {min(RESULTS, len(there))} most similar of {len(there):,} in the last batch, the true one marked; "
            "the metrics search the whole split."
        )
        sections.append(Section(f"{output}: {query} to {gallery}", about, cards=cards))
    return sections


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"
