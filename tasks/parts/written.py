"""How well texts were written: BLEU, chrF and ROUGE against one or more references, in any script."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any
from unicodedata import normalize

from tasks.base import Metrics

WRITING_METRICS: dict[str, str] = {
    "chrf": "Character n-gram F-score, chrF2 of sacreBLEU, 0 to 100: fair to every language, since it needs no words.",
    "bleu": "BLEU of sacreBLEU, 0 to 100, mixed case, tokenised by 13a after every Chinese, Japanese, Korean and "
    "Thai character was made a word of its own.",
    "rouge1": "ROUGE-1: F1 of words, 0 to 100, averaged over the examples, of the best reference each. Words are "
    "runs of letters and digits in lower case, and single characters as for BLEU; no stemming.",
    "rouge2": "ROUGE-2: the same of pairs of words.",
    "rougeL": "ROUGE-L: the same of the longest common subsequence of words.",
    "exact_match": "Share of the examples answered as a reference, up to spaces and Unicode forms.",
}
WORST = 10
# Scripts without spaces between words, and Korean, whose words are stems and endings in one.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_EACH = re.compile(f"([{_ALONE}])")
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")


def score_texts(written: Sequence[str], references: Sequence[Sequence[str]]) -> Metrics:
    """Every metric of `WRITING_METRICS`."""
    # Here, because it takes 10 MiB and 0.1 s of every process that knows the tasks, and most score no texts.
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    texts = [clean(text) for text in written]
    truths = [[clean(text) for text in some] for some in references]
    rouge = [_rouge(text, some) for text, some in zip(texts, truths, strict=True)]
    spread = [[_EACH.sub(r" \1 ", text) for text in some] for some in truths]
    bleu = BLEU().corpus_score([_EACH.sub(r" \1 ", text) for text in texts], _streams(spread))
    return {
        "chrf": CHRF().corpus_score(texts, _streams(truths)).score,
        "bleu": bleu.score,
        **{
            name: 100 * sum(found) / len(found)
            for name, found in zip(
                ("rouge1", "rouge2", "rougeL"), zip(*rouge, strict=True), strict=True
            )
        },
        "exact_match": sum(text in some for text, some in zip(texts, truths, strict=True))
        / len(texts),
    }


def worst_texts(
    written: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """The examples answered worst, by their chrF."""
    from sacrebleu.metrics.chrf import CHRF  # as above

    each = CHRF()
    scores = [
        each.sentence_score(clean(text), [clean(one) for one in some]).score
        for text, some in zip(written, references, strict=True)
    ]
    order = sorted(range(len(scores)), key=scores.__getitem__)[:WORST]
    return [
        {
            "row": row,
            "truth": list(references[row]),
            "predicted": written[row],
            "chrf": scores[row],
        }
        for row in order
    ]


def clean(text: str) -> str:
    """A text with single spaces and composed letters."""
    return " ".join(normalize("NFC", text).split())


def _streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """The first references of all examples, the second ones, and so on; again the first where there are none."""
    most = max(map(len, references))
    return [[some[n] if n < len(some) else some[0] for some in references] for n in range(most)]


def _rouge(text: str, references: Iterable[str]) -> tuple[float, float, float]:
    """ROUGE-1, -2 and -L (Lin, 2004), 0 to 1, the best of the references each."""
    words = _words(text)
    found = [_rouge_of(words, _words(reference)) for reference in references]
    return max(f[0] for f in found), max(f[1] for f in found), max(f[2] for f in found)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _rouge_of(words: list[str], truth: list[str]) -> tuple[float, float, float]:
    pairs, true_pairs = (Counter(pairwise(some)) for some in (words, truth))
    return (
        _f1((Counter(words) & Counter(truth)).total(), len(words), len(truth)),
        _f1((pairs & true_pairs).total(), pairs.total(), true_pairs.total()),
        _f1(_common(words, truth), len(words), len(truth)),
    )


def _f1(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if common else 0.0


def _common(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        corner = 0
        for place, its in enumerate(other, start=1):
            above = row[place]
            row[place] = corner + 1 if word == its else max(above, row[place - 1])
            corner = above
    return row[-1]
