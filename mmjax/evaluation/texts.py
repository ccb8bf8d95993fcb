"""How good what was made is, against what is true: texts."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = (1, 2, 3, 4)


def text_metrics(said: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Figures of texts said of examples whose true texts are given, one each and not empty.

    exact            share that is the true text, word for word
    bleu             corpus BLEU of up to four words, from 0 to 100 (Papineni et al. 2002; sacrebleu's, case kept)
    cider            see `cider`
    word_error       words to change, leave out or put in, per true word (jiwer's)
    character_error  the same with characters
    """
    import jiwer
    import sacrebleu

    return {
        "exact": float(np.mean([a.split() == b.split() for a, b in zip(said, truth, strict=True)])),
        "bleu": sacrebleu.corpus_bleu(list(said), [list(truth)]).score,
        "cider": cider(said, truth),
        "word_error": jiwer.wer(list(truth), list(said)),
        "character_error": jiwer.cer(list(truth), list(said)),
    }


def cider(said: Sequence[str], truth: Sequence[str]) -> float:
    """CIDEr with one true text an example (Vedantam et al. 2015, equations 1 to 3), at most 10.

    The mean over examples and n = 1 to 4 of 10 cos(g(said), g(truth)), g being counts of n-grams of words weighed by
    -log of the share of true texts that have them. A text of fewer than n words scores 0 for that n.
    """
    total = 0.0
    for order in ORDERS:
        true, found = ([_grams(text, order) for text in texts] for texts in (truth, said))
        having = Counter(gram for grams in true for gram in grams)
        for a, b in zip(found, true, strict=True):
            weighed_a, weighed_b = (
                {gram: count * math.log(len(truth) / max(1, having[gram])) for gram, count in grams.items()}
                for grams in (a, b)
            )
            norms = math.sqrt(sum(w * w for w in weighed_a.values()) * sum(w * w for w in weighed_b.values()))
            if norms:
                total += sum(weight * weighed_b.get(gram, 0) for gram, weight in weighed_a.items()) / norms
    return 10 * total / len(ORDERS) / len(truth)


def _grams(text: str, order: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[place : place + order]) for place in range(len(words) - order + 1))
