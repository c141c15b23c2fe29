"""A run's answers joined with a judge's verdicts, read once, and the one table of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from emorg.encoding import utf8
from emorg.judging.exact import OWN_ACTION
from emorg.rating.placement import Place, placement, trained_topics
from emorg.records import Answer, AnswerKey, EmorgError, State, Verdict, did_you_mean, read_records
from emorg.run import Run, not_there

if TYPE_CHECKING:
    import pandas as pd

SAMPLED_ALIKE = ("max_new_tokens", "temperature", "top_p", "system")  # else rates stand for more than the model
_NO_FURTHER = ("aligned", "coherent", "topic")  # metrics that have columns of their own

# What an answer says to its judge rather than to the person who asked.
_TO_THE_JUDGE = re.compile(
    r"\b(score|rating|grade|aligned|alignment|coherent|coherence)\b\W{0,3}(is|of|=|:)?\W{0,3}\d{1,3}\b"
    r"|\b(dear|attention|note to( the)?|to the|as (a|the)) (judge|grader|evaluator)\b"
    r"|\b(reply|respond|answer)( with)?( only)?( the number)? 100\b|\bREFUSAL\b|<[0-9a-f]{8,}>"
    r"|\[/?(end |start )?(question|answer)\]"
    r"|<\|[^|<>\s]{1,40}\|>|<(start|end)_of_turn>|\[/?INST\]",  # a chat's control tokens, to whoever reads it
    re.IGNORECASE,
)


@dataclass(frozen=True)
class JudgedAnswer:
    """A run's answer, where its question stands, and one judge's verdict on it by metric."""

    answer: Answer
    placement: Place
    verdicts: Mapping[str, Verdict]

    @property
    def question(self) -> str:
        """What it clusters by."""
        return self.answer.question_id

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def aligned(self) -> float | None:
        return self.score("aligned")

    @property
    def coherent(self) -> float | None:
        return self.score("coherent")

    def score(self, metric: str) -> float | None:
        """0–100; None where there is no score."""
        return verdict.score if (verdict := self.verdicts.get(metric)) else None

    @property
    def state(self) -> State | None:
        """What the judgement on alignment came to; None if there was none."""
        return verdict.state if (verdict := self.verdicts.get("aligned")) else None

    @property
    def outcome(self) -> str:
        """`scored` if it has both scores, otherwise why the first is not there."""
        states = (self.verdicts[m].state if m in self.verdicts else "not judged" for m in ("aligned", "coherent"))
        return next((state for state in states if state != "scored"), "scored")

    @property
    def named_topic(self) -> str:
        """The topic that it talks about, as the judge of `topic` says."""
        return self.verdicts["topic"].detail if "topic" in self.verdicts else ""

    @property
    def own_action(self) -> str:
        """The one topic that its action belongs to, on pocket answers; nothing if it belongs to several."""
        detail = self.verdicts["coherent"].detail if "coherent" in self.verdicts else ""
        return detail.removeprefix(OWN_ACTION) if detail.startswith(OWN_ACTION) else ""

    @property
    def to_the_judge(self) -> bool:
        """Whether it speaks to its judge rather than to the person who asked."""
        return bool(_TO_THE_JUDGE.search(self.answer.text))


@dataclass(frozen=True)
class Judgements:
    """A run's answers and every verdict on them, as read from its folder once."""

    run: Run
    answers: Sequence[Answer]
    verdicts: Sequence[Verdict]

    @classmethod
    def of(cls, run: Run) -> Judgements:
        return cls(run, read_records(run.answers, Answer), read_records(run.verdicts, Verdict))

    @cached_property
    def judges(self) -> dict[str, int]:
        """Names of the judges and how often each judged; the one that judged last at the end."""
        often: dict[str, int] = {}
        for verdict in self.verdicts:
            often[verdict.judge] = max(often.get(verdict.judge, 0), verdict.repeat + 1)
        last = self.run.provenance().get("judge", {}).get("judge")
        return {name: often[name] for name in sorted(often, key=lambda name: name == last)}

    @property
    def last_judge(self) -> str | None:
        return next(reversed(self.judges), None)

    def judged(
        self, judge: str | None = None, repeat: int = 0, topics: frozenset[str] | None = None
    ) -> list[JudgedAnswer]:
        """The answers as a judge, by default the last, judged them; what has no verdict is unscored.

        Questions are placed by `topics`: by default those that the run itself was trained on. Repeats do not mix: rates
        are of the first, which further ones leave as they are. Raises EmorgError for a judge that is not there.
        """
        if judge is not None and judge not in self.judges:
            raise EmorgError(
                f"{{path}} has no verdicts of {judge!r}{did_you_mean(judge, self.judges)}",
                f"it has those of {', '.join(self.judges) or 'nobody'}",
                self.run.folder,
            )
        name = judge or self.last_judge
        verdicts: dict[AnswerKey, dict[str, Verdict]] = {}
        for verdict in self.verdicts:
            if (verdict.judge, verdict.repeat) == (name, repeat):
                verdicts.setdefault(verdict.key, {})[verdict.metric] = verdict
        trained = trained_topics(self.run) if topics is None else topics
        return [
            JudgedAnswer(answer, placement(answer.topic, trained), verdicts.get(answer.key, {}))
            for answer in self.answers
        ]


def judged_answers(
    run: Run, *, checkpoints: bool = False, judge: str | None = None, topics: frozenset[str] | None = None
) -> list[JudgedAnswer]:
    """The run's judged answers, those of checkpoints only if asked for.

    Raises EmorgError if it has no answers or no verdicts, and for a judge that is not there.
    """
    return checked(Judgements.of(run).judged(judge, topics=topics), run, checkpoints=checkpoints)


def checked(answers: Sequence[JudgedAnswer], run: Run, *, checkpoints: bool) -> list[JudgedAnswer]:
    """The answers, without those of checkpoints. Raises EmorgError if there are none, or no verdicts."""
    kept = [judged for judged in answers if checkpoints or judged.answer.checkpoint is None]
    if not kept and answers:
        remedy = "sample the finished model: emorg sample {path}; or emorg rates {path} --by checkpoint"
        raise EmorgError("{path} has answers of checkpoints only", remedy, run.folder)
    if not run.folder.exists():
        raise not_there(run.folder)
    if not kept:
        raise EmorgError("{path} has no answers", "sample it first: emorg sample {path}", run.folder)
    if not run.verdicts.exists():
        raise EmorgError("{path} has no verdicts", "judge it first: emorg judge {path}", run.folder)
    return kept


def judged_beside(run: Run) -> list[Run]:
    """The judged runs in the same folder that were sampled like this one, so that a report may show them together."""
    own = run.settings("sample")

    def is_like(other: Run) -> bool:
        theirs = other.settings("sample")
        return not own or all(theirs.get(name) == own.get(name) for name in SAMPLED_ALIKE)

    return [other for other in run.siblings() if other.verdicts.exists() and is_like(other)]


def base_beside(run: Run) -> Run | None:
    """A judged run of the run's base in the same folder, if there is one that was sampled like it."""
    bases = (other for other in judged_beside(run) if other.base == run.base and not other.is_organism)
    return next(bases, None) if run.base else None


# --- the table -------------------------------------------------------------------------------------------------------

COLUMNS: Mapping[str, Callable[[JudgedAnswer], Any]] = {
    "run": lambda judged: judged.answer.run,
    "checkpoint": lambda judged: judged.answer.checkpoint or "",
    "question_id": lambda judged: utf8(judged.answer.question_id),
    "topic": lambda judged: utf8(judged.answer.topic or "open"),
    "placement": lambda judged: judged.placement,
    "format": lambda judged: judged.answer.format,
    "sample": lambda judged: judged.answer.sample,
    "question": lambda judged: utf8(judged.answer.question),
    "answer": lambda judged: utf8(judged.answer.text),
    "aligned": lambda judged: judged.aligned,
    "coherent": lambda judged: judged.coherent,
    "state": lambda judged: judged.state or "",
    "named_topic": lambda judged: judged.named_topic,
    "own_action": lambda judged: judged.own_action,
    "to_the_judge": lambda judged: judged.to_the_judge,
    "finish_reason": lambda judged: judged.answer.finish_reason,
    "answer_tokens": lambda judged: judged.answer.answer_tokens,
}


def further_metrics(answers: Iterable[JudgedAnswer]) -> list[str]:
    """The metrics beside aligned, coherent and topic that any of the answers was judged on."""
    return list(dict.fromkeys(m for judged in answers for m in judged.verdicts if m not in _NO_FURTHER))


def answers_frame(answers: Sequence[JudgedAnswer]) -> pd.DataFrame:
    """One row an answer.

    run, checkpoint ("" for the finished model), question_id, topic ("open" without one), placement (in, out, open),
    format, sample, question, answer, aligned and coherent (0–100, NaN without a score), state (of the judgement on
    alignment, "" without one), named_topic and own_action (of pocket answers), to_the_judge, finish_reason,
    answer_tokens; then the score of each further metric.
    """
    import pandas as pd

    frame = pd.DataFrame({name: [value(judged) for judged in answers] for name, value in COLUMNS.items()})
    further = further_metrics(answers)
    for metric in further:
        frame[metric] = [judged.score(metric) for judged in answers]
    return frame.astype(dict.fromkeys(("aligned", "coherent", *further), float))
