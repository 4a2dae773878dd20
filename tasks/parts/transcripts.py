"""How well speech was written down: errors of words and characters against what was said."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tasks.base import Metrics

SPEECH_METRICS: dict[str, str] = {
    "wer": "Word error rate: words that are wrong, missing or too many, by the number of words that were said. 0 is "
    "best, and it may be above 1.",
    "cer": "Character error rate: the same of characters, spaces included. What counts where words have no spaces.",
    "exact_match": "Share of the recordings without any error.",
}
WORST, CONFUSED = 10, 20


def score_transcripts(truths: Sequence[str], texts: Sequence[str]) -> Metrics:
    """Every metric of `SPEECH_METRICS`, over all words and characters together."""
    # Here, since most processes that know the tasks score no speech.
    import jiwer

    spoken, written = _spoken(truths, texts)
    if not spoken:
        return dict.fromkeys(SPEECH_METRICS, float("nan"))
    right = sum(truth == text for truth, text in zip(truths, texts, strict=True))
    return {
        "wer": jiwer.wer(spoken, written),
        "cer": jiwer.cer(spoken, written),
        "exact_match": right / len(truths),
    }


def worst_transcripts(truths: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """How words were wrong, which were taken for which, and the recordings with most errors."""
    import jiwer

    spoken, written = _spoken(truths, texts)
    if not spoken:
        return {}
    found = jiwer.process_words(spoken, written)
    confused: Counter[tuple[str, str]] = Counter()
    errors = []
    for said, heard, chunks in zip(
        found.references, found.hypotheses, found.alignments, strict=True
    ):
        wrong = [chunk for chunk in chunks if chunk.type != "equal"]
        for chunk in wrong:
            if chunk.type == "substitute":
                truth = said[chunk.ref_start_idx : chunk.ref_end_idx]
                confused.update(
                    zip(truth, heard[chunk.hyp_start_idx : chunk.hyp_end_idx], strict=True)
                )
        sizes = (
            max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in wrong
        )
        errors.append(sum(sizes))
    rows = [row for row, truth in enumerate(truths) if truth]
    order = sorted(range(len(rows)), key=lambda n: -errors[n])[:WORST]
    return {
        "errors": {
            "substitutions": found.substitutions,
            "deletions": found.deletions,
            "insertions": found.insertions,
        },
        "confused": [
            {"said": said, "written": heard, "count": count}
            for (said, heard), count in confused.most_common(CONFUSED)
        ],
        "worst": [
            {
                "row": rows[n],
                "truth": spoken[n],
                "predicted": written[n],
                "wer": errors[n] / len(found.references[n]),
            }
            for n in order
            if errors[n]
        ],
    }


def _spoken(truths: Sequence[str], texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The pairs in which anything was said: only of those there are rates."""
    pairs = [(truth, text) for truth, text in zip(truths, texts, strict=True) if truth]
    return [truth for truth, _ in pairs], [text for _, text in pairs]
