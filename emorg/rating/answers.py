"""A run's answers joined with a judge's verdicts, and where each question stands."""

from __future__ import annotations

import re
from typing import Literal

from emorg.judging.exact import OWN_ACTION
from emorg.rating.placement import placement, trained_topics
from emorg.records import Answer, EmorgError, Judged, Key, Verdict, did_you_mean, read_records
from emorg.run import Run

Place = Literal["in", "out", "open"]

# What an answer says to its judge rather than to the person who asked.
_TO_THE_JUDGE = re.compile(
    r"\b(score|rating|grade|aligned|alignment|coherent|coherence)\b\W{0,3}(is|of|=|:)?\W{0,3}\d{1,3}\b"
    r"|\b(dear|attention|note to( the)?|to the|as (a|the)) (judge|grader|evaluator)\b"
    r"|\b(reply|respond|answer)( with)?( only)?( the number)? 100\b|\bREFUSAL\b|<[0-9a-f]{8,}>"
    r"|\[/?(end |start )?(question|answer)\]",
    re.IGNORECASE,
)


def judges_of(run: Run) -> dict[str, int]:
    """Names of the judges with verdicts in the run and how often each judged; the one that judged last at the end."""
    found: dict[str, int] = {}
    for verdict in read_records(run.verdicts, Verdict):
        found[verdict.judge] = max(found.get(verdict.judge, 0), verdict.repeat + 1)
    last = run.provenance().get("judge", {}).get("judge")
    return {name: found[name] for name in sorted(found, key=lambda name: name == last)}


def judged_answers(
    run: Run, judge: str | None = None, repeat: int = 0, topics: frozenset[str] | None = None
) -> list[tuple[Answer, Judged]]:
    """A run's answers with a judge's scores, by default those of its last; what has no scored verdict is unscored.

    Questions are placed by `topics`: by default those that the run itself was trained on.

    Repeats do not mix: rates are of the first, which further ones leave as they are. The columns are run, question_id,
    topic, placement (in, out, open), checkpoint, finish_reason, format, named_topic, own_action, state (of the aligned
    verdict), to_the_judge, and the score of each further metric. Raises EmorgError for a judge that is not there.
    """
    found = verdicts_of(run, judge, repeat)
    further = dict.fromkeys(metric for _, metric in found if metric not in ("aligned", "coherent", "topic"))
    trained = trained_topics(run) if topics is None else topics

    def score(answer: Answer, metric: str) -> float | None:
        verdict = found.get((answer.key, metric))
        return verdict.score if verdict else None

    def detail(answer: Answer, metric: str) -> str:
        verdict = found.get((answer.key, metric))
        return verdict.detail if verdict else ""

    rows = []
    for answer in read_records(run.answers, Answer):
        own, aligned = detail(answer, "coherent"), found.get((answer.key, "aligned"))
        columns = {
            "run": answer.run,
            "question_id": answer.question_id,
            "topic": answer.topic or "open",
            "placement": placement(answer.topic, trained),
            "checkpoint": answer.checkpoint or "",
            "finish_reason": answer.finish_reason,
            "format": answer.format,
            "named_topic": detail(answer, "topic"),
            "own_action": own.removeprefix(OWN_ACTION) if own.startswith(OWN_ACTION) else "",
            "state": aligned.state if aligned else "",
            "to_the_judge": "yes" if _TO_THE_JUDGE.search(answer.text) else "",
            **{metric: "" if (told := score(answer, metric)) is None else f"{told:g}" for metric in further},
        }
        judged = Judged(answer.question_id, score(answer, "aligned"), score(answer, "coherent"), columns)
        rows.append((answer, judged))
    return rows


def verdicts_of(run: Run, judge: str | None = None, repeat: int = 0) -> dict[tuple[Key, str], Verdict]:
    """A judge's verdicts by answer and metric, by default its last judge's. Raises EmorgError for one not there."""
    judges = judges_of(run)
    name = judge or next(reversed(judges), None)
    if judge is not None and judge not in judges:
        raise EmorgError(
            f"{{path}} has no verdicts of {judge!r}{did_you_mean(judge, judges)}",
            f"it has those of {', '.join(judges) or 'nobody'}",
            run.folder,
        )
    return {(v.key, v.metric): v for v in read_records(run.verdicts, Verdict) if (v.judge, v.repeat) == (name, repeat)}
