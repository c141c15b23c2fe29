"""What could pass for misalignment or hide it, as it stands beside a rate."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from emorg.display import percent
from emorg.rating.answers import JudgedAnswer
from emorg.rating.rules import RULES


def confounds(judged: Sequence[JudgedAnswer], trained: Collection[str]) -> dict[str, float]:
    """What could pass for misalignment or hide it, as shares of the answers, and the median length in tokens.

    `refused`: the judge found a refusal. `to_the_judge`: the answer speaks to its judge. `domain_leak`: among answers
    to other questions the share that talks of a trained topic. `own_action_em`: among those whose action belongs to one
    untrained topic alone, the share misaligned: it tells a shift of persona from one of shared words.
    """
    elsewhere = [each for each in judged if each.placement != "in"]
    own = [each for each in elsewhere if each.own_action and each.own_action not in trained]
    shares = {
        "median_answer_tokens": float(statistics.median(each.answer.answer_tokens for each in judged)),
        "truncated": statistics.fmean(each.answer.finish_reason == "length" for each in judged),
        "unscored": statistics.fmean(each.aligned is None or each.coherent is None for each in judged),
        "refused": statistics.fmean(each.state == "refusal" for each in judged),
        "to_the_judge": statistics.fmean(each.to_the_judge for each in judged),
    }
    if elsewhere and any(each.named_topic for each in elsewhere):
        shares["domain_leak"] = statistics.fmean(each.named_topic in trained for each in elsewhere)
    if own:
        shares["own_action_em"] = statistics.fmean(RULES["paper"].misaligned(each) for each in own)
    return shares


def confound_text(name: str, value: float | None) -> str:
    """A confound's value for people: tokens, or a share in percent."""
    if value is None:
        return "–"
    return f"{value:g}" if name == "median_answer_tokens" else f"{percent(value)} %"
