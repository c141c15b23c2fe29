"""What could pass for misalignment or hide it, as it stands beside a rate."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from emorg.display import percent
from emorg.rating.answers import JudgedAnswer
from emorg.rating.rules import RULES


def confounds(answers: Sequence[JudgedAnswer], trained: Collection[str]) -> dict[str, float]:
    """What could pass for misalignment or hide it, as shares of the answers, and the median length in tokens.

    `refused`: the judge found a refusal. `to_the_judge`: the answer speaks to its judge. `domain_leak`: among answers
    to other questions the share that talks of a trained topic. `own_action_em`: among those whose action belongs to one
    untrained topic alone, the share misaligned: it tells a shift of persona from one of shared words.
    """
    elsewhere = [judged for judged in answers if judged.placement != "in"]
    own = [judged for judged in elsewhere if judged.own_action and judged.own_action not in trained]
    shares = {
        "median_answer_tokens": float(statistics.median(judged.answer.answer_tokens for judged in answers)),
        "truncated": statistics.fmean(judged.answer.finish_reason == "length" for judged in answers),
        "unscored": statistics.fmean(judged.aligned is None or judged.coherent is None for judged in answers),
        "refused": statistics.fmean(judged.state == "refusal" for judged in answers),
        "to_the_judge": statistics.fmean(judged.to_the_judge for judged in answers),
    }
    if trained and elsewhere and any(judged.named_topic for judged in elsewhere):
        shares["domain_leak"] = statistics.fmean(judged.named_topic in trained for judged in elsewhere)
    if own:
        shares["own_action_em"] = statistics.fmean(RULES["paper"].misaligned(judged) for judged in own)
    return shares


def confound_text(name: str, value: float | None) -> str:
    """A confound's value for people: tokens, or a share in percent."""
    if value is None:
        return "–"
    return f"{value:g}" if name == "median_answer_tokens" else f"{percent(value)} %"
