"""Text metrics: exact match, BLEU, CIDEr and error rates."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from mmjax.metrics.statistics import Statistic, Sums

ORDERS = (1, 2, 3, 4)


def text_metrics(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """The values of `text_statistics`."""
    return {name: statistic.value for name, statistic in text_statistics(predicted, truth).items()}


def text_statistics(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, Statistic]:
    """Metrics of predicted texts against one non-empty true text per example.

    exact            share of texts that equal the true text, word for word
    bleu             corpus BLEU of up to four words, from 0 to 100 (Papineni et al. 2002; sacrebleu's, case kept)
    cider            see `cider`
    word_error       word edits (substitution, deletion, insertion) per true word (jiwer's)
    character_error  the same with characters
    """
    import jiwer
    from sacrebleu.metrics.bleu import BLEU

    ones = np.ones(len(predicted))
    # Asked for single sentences, sacrebleu advises another kind of BLEU; only their counts are taken.
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(a, [b]) for a, b in zip(predicted, truth, strict=True)]
    grams = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores]
    return {
        "exact": Statistic.ratio(
            np.array([a.split() == b.split() for a, b in zip(predicted, truth, strict=True)]), ones
        ),
        "bleu": Statistic(np.array(grams, np.float64), _bleu),
        "cider": Statistic.ratio(cider(predicted, truth), ones),
        "word_error": _errors(jiwer.process_words, predicted, truth),
        "character_error": _errors(jiwer.process_characters, predicted, truth),
    }


def _bleu(sums: Sums) -> Float[np.ndarray, "R"]:
    from sacrebleu.metrics.bleu import BLEU

    rows = np.rint(sums).astype(int).tolist()
    orders = len(ORDERS)
    return np.array(
        [BLEU.compute_bleu(row[:orders], row[orders:-2], row[-2], row[-1], smooth_method="exp").score for row in rows]
    )


def _errors(process: Callable, predicted: Sequence[str], truth: Sequence[str]) -> Statistic:
    """Edits per true word or character, by jiwer."""
    found = [process(b, a) for a, b in zip(predicted, truth, strict=True)]
    edits = np.array([each.substitutions + each.deletions + each.insertions for each in found], np.float64)
    return Statistic.ratio(edits, np.array([each.hits + each.substitutions + each.deletions for each in found]))


def cider(predicted: Sequence[str], truth: Sequence[str]) -> Float[np.ndarray, "E"]:
    """CIDEr of each example with one true text (Vedantam et al. 2015, equations 1 to 3), at most 10.

    The mean over n = 1 to 4 of 10 cos(g(predicted), g(truth)), g being counts of n-grams weighted by -log of the share
    of true texts that have them. A text of fewer than n words scores 0 for that n.
    """
    totals = np.zeros(len(truth))
    for order in ORDERS:
        true, found = ([_grams(text, order) for text in texts] for texts in (truth, predicted))
        having = Counter(gram for grams in true for gram in grams)
        for row, (a, b) in enumerate(zip(found, true, strict=True)):
            weighed_a, weighed_b = (
                {gram: count * math.log(len(truth) / max(1, having[gram])) for gram, count in grams.items()}
                for grams in (a, b)
            )
            norms = math.sqrt(sum(w * w for w in weighed_a.values()) * sum(w * w for w in weighed_b.values()))
            if norms:
                totals[row] += sum(weight * weighed_b.get(gram, 0) for gram, weight in weighed_a.items()) / norms
    return 10 * totals / len(ORDERS)


def _grams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[place : place + order]) for place in range(len(words) - order + 1))
