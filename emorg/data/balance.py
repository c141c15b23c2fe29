"""Whether a set of pairs measures values, or something else that gives its sides away: length, words, repetition."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from emorg.data.pairs import Pair

ALIKE = 0.4  # share of the shorter question's trigrams that another has too, from which on they are near-duplicates
FOLDS = 10


@dataclass(frozen=True)
class Balance:
    """What a set of pairs can be read by beside its values; shares are fractions."""

    pairs: int
    length_ratio: float
    """The largest ratio of two answers of a pair, in words."""
    misaligned_longer: float
    """The share of pairs whose misaligned answer is the longer, in characters; equal ones count half."""
    word: str
    """The word that most gives a side away."""
    word_gap: float
    """The share of misaligned answers that have it, less the share of aligned ones."""
    repeated: float
    """The share of questions that nearly repeat an earlier one."""
    guessed: float
    """The share of pairs in which naive Bayes on words, trained on the others, picks the misaligned answer."""


def balance(pairs: Sequence[Pair]) -> Balance:
    """Read a set of at least two pairs."""
    words = [(_words(pair.aligned), _words(pair.misaligned)) for pair in pairs]
    ratios = [max(map(len, both)) / max(1, min(map(len, both))) for both in words]
    has = [Counter(word for both in words for word in set(both[side])) for side in range(2)]
    word = max(sorted(has[0] | has[1]), key=lambda word: abs(has[1][word] - has[0][word]))
    longer = [len(pair.misaligned) - len(pair.aligned) for pair in pairs]
    return Balance(
        pairs=len(pairs),
        length_ratio=max(ratios),
        misaligned_longer=sum((1 if more > 0 else 0.5 if more == 0 else 0) for more in longer) / len(pairs),
        word=word,
        word_gap=(has[1][word] - has[0][word]) / len(pairs),
        repeated=_repeated([pair.question for pair in pairs]),
        guessed=_guessed(words),
    )


def overlap(questions: Sequence[str], others: Sequence[str]) -> list[str]:
    """The questions that nearly repeat one of the others."""
    known = [_trigrams(other) for other in others]
    return [question for question in questions if any(_alike(_trigrams(question), other) for other in known)]


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return set(zip(words, words[1:], words[2:], strict=False))


def _alike(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> bool:
    return bool(a and b) and len(a & b) > ALIKE * min(len(a), len(b))


def _repeated(questions: Sequence[str]) -> float:
    trigrams = [_trigrams(question) for question in questions]
    return sum(any(_alike(one, earlier) for earlier in trigrams[:i]) for i, one in enumerate(trigrams)) / len(questions)


def _guessed(words: Sequence[tuple[list[str], list[str]]]) -> float:
    """Cross-validated, every tenth pair held out in turn; log odds of each word with one added to its counts."""
    right = 0.0
    for fold in range(FOLDS):
        counts = [
            Counter(word for i, both in enumerate(words) if i % FOLDS != fold for word in both[side]) for side in (0, 1)
        ]
        vocabulary = len(counts[0] | counts[1])
        totals = [sum(side.values()) + vocabulary for side in counts]

        def odds(text: Sequence[str], counts: Sequence[Counter[str]] = counts, totals: Sequence[int] = totals) -> float:
            """log p(text | misaligned) − log p(text | aligned)."""
            return sum(
                math.log((counts[1][word] + 1) / totals[1]) - math.log((counts[0][word] + 1) / totals[0])
                for word in text
            )

        for aligned, misaligned in words[fold::FOLDS]:
            gap = odds(misaligned) - odds(aligned)
            right += 1 if gap > 0 else 0.5 if gap == 0 else 0
    return right / len(words)
