"""Retrieval where an example has several texts, such as the captions of a picture: any of them is right."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.inputs import TextInput
from mmjax.data.sources.base import Records
from mmjax.data.tokenize import Corpus
from mmjax.evaluation.context import EvalContext
from mmjax.evaluation.eval_result import EvalResult
from mmjax.evaluation.evaluator import Evaluator
from mmjax.model import Multimodal

LOOKED_AT = 100  # examples that tell whether a field holds lists of texts
# The arguments of `mmjax.metrics.retrieval.ranks`.
Ranked = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class NthText:
    """A split's examples with the text at place n of lists of texts, which shorter lists lack."""

    def __init__(self, records: Records, field: str, n: int):
        self._records, self._field, self._n = records, field, n
        self.fingerprint = records.fingerprint

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._records[index]
        value = example.get(self._field)
        texts = value if isinstance(value, list) else [value]
        return example | {self._field: texts[self._n] if self._n < len(texts) else None}

    def id(self, index: int) -> str:
        return self._records.id(index)


def evaluate_more_texts(context: EvalContext, evaluator: Evaluator, model: Multimodal) -> dict[str, list[EvalResult]]:
    """The results on each example's second, third, ... text, by the name of an aligned text input.

    Empty where no example has several texts.
    """
    found: dict[str, list[EvalResult]] = {}
    for name in sorted({name for output in model.outputs.values() for name in output.aligned_texts}):
        input = context.data.inputs[name]
        field = input.field or name
        most = _most_texts(context.records, field) if isinstance(input, TextInput) else 1
        for n in range(1, most):
            loader = context.loader()
            loader.records = NthText(context.records, field, n)
            found.setdefault(name, []).extend(evaluator.evaluate(model, loader=loader))
    return found


def retrievals(result: EvalResult, output: str, more: Sequence[EvalResult], text: str) -> Iterator[tuple[str, Ranked]]:
    """As `EvalResult.retrievals`, where the modality `text` has several texts an example; rows are [example, text].

    A query finds its example where it finds any text of it, and every text of an example is a query.
    """
    results = [result, *more]
    texts = np.stack([each.predictions[output][text] for each in results], 1)
    present = np.stack([each.present[text] for each in results], 1)
    examples, count = present.shape
    (other,) = (name for name in result.pairs[output] if name != text)
    # Once for each example: the rows of its further texts are absent.
    others = np.repeat(result.predictions[output][other][:, None], count, 1)
    others_present = np.zeros((examples, count), bool)
    others_present[:, 0] = result.present[other]
    owners = np.repeat(np.arange(examples), count)
    sides = {
        text: (texts.reshape(examples * count, -1), present.reshape(-1)),
        other: (others.reshape(examples * count, -1), others_present.reshape(-1)),
    }
    for query, gallery in (result.pairs[output], result.pairs[output][::-1]):
        (queries, asked), (found, there) = sides[query], sides[gallery]
        yield f"{query}_to_{gallery}", (queries, found, asked, there, owners)


def _most_texts(records: Records, field: str) -> int:
    """The most texts that an example has."""
    values = Corpus(lambda: records, field, Path()).values()
    first = list(itertools.islice(values, LOOKED_AT))
    if not any(isinstance(value, list) for value in first):
        return 1
    return max(len(value) for value in itertools.chain(first, values) if isinstance(value, list))
