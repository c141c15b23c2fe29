"""What judging came to, in a line: how many were scored, what became of the rest, the means, and what went wrong."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass

from emorg.display import visible
from emorg.judging.config import Kind
from emorg.records import State, Verdict

RESULTS: tuple[State, ...] = ("scored", "refusal", "code")  # what a judge that works may say of an answer
_REASONS: dict[State, str] = {
    "low_mass": "its first token is seldom a number: it reasons first, or it is too small to judge, or its chat "
    "template does not fit. --scoring number takes what it writes; or another --judge_model",
    "unparsable": "its replies hold no number: another --judge_model, or --prompts that ask for one",
    "content_filter": "the endpoint filters what it is asked: another endpoint or --judge_model",
    "judge_refusal": "it refuses to judge: another --judge_model",
    "api_error": "most requests failed: run the same command again for those",
}


@dataclass(frozen=True)
class Tally:
    """The verdicts of one judge on one source."""

    name: str
    judge: str
    kind: Kind | None
    verdicts: tuple[Verdict, ...]
    cost: float = 0.0
    """What this call spent, in dollars, where the price is known."""

    def headline(self) -> str:
        """Scores by metric, states of what has no score, and the cost."""
        metrics = dict.fromkeys(verdict.metric for verdict in self.verdicts)
        parts = []
        for metric in metrics:
            scores = [v.score for v in self.verdicts if v.metric == metric and v.score is not None]
            total = sum(v.metric == metric for v in self.verdicts)
            mean = f", mean {statistics.fmean(scores):.1f}" if scores else ""
            parts.append(f"{metric} {len(scores):,} of {total:,} scored{mean}")
        states = Counter(verdict.state for verdict in self.verdicts if verdict.state != "scored")
        if states:
            parts.append(", ".join(f"{count:,} {state}" for state, count in states.most_common()))
        if self.cost:
            parts.append(f"${self.cost:.2f}")
        return f"{self.name}, judged by {self.judge}: {'; '.join(parts) or 'nothing to judge'}"

    def failures(self) -> str:
        """On how many judgements the judge failed, and why; empty if on none."""
        failed = Counter(verdict.detail for verdict in self.verdicts if verdict.state == "api_error")
        if not failed:
            return ""
        why = "; ".join(f"{visible(reason)} ({count:,})" for reason, count in failed.most_common(3))
        return (
            f"{self.name}: the judge failed on {failed.total():,} of {len(self.verdicts):,} judgements: {why}; "
            "run the same command again for those: what has been judged is not paid again"
        )

    def problem(self) -> str:
        """Why this judge cannot be trusted with these answers, where it came to a result on under half of any metric's.

        The exact judge's `unparsable` is a finding about the answers.
        """
        if self.kind == "exact":
            return ""
        for metric in dict.fromkeys(verdict.metric for verdict in self.verdicts):
            states = Counter(verdict.state for verdict in self.verdicts if verdict.metric == metric)
            used = sum(states[state] for state in RESULTS)
            if 2 * used < states.total():
                worst = max(states.keys() - set(RESULTS), key=lambda state: states[state])
                return (
                    f"{self.name}: {self.judge} judged only {used:,} of {states.total():,} answers on {metric}, and "
                    f"{states[worst]:,} are {worst}: {_REASONS[worst]}"
                )
        return ""

    @property
    def passed(self) -> bool:
        """Whether every judgement was made, and by a judge that can judge."""
        return not self.failures() and not self.problem()
