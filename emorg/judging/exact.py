"""The exact judge: the pocket world's verdicts, as `emorg.pocket.exact` defines them."""

from __future__ import annotations

from emorg.judging.scoring import Reading
from emorg.records import Answer

OWN_ACTION = "own action of "  # before the topic, in the detail of a coherent verdict


def readings(answer: Answer) -> dict[str, Reading]:
    """What the grammar says of an answer on aligned, coherent and topic."""
    from emorg.pocket.exact import grade
    from emorg.pocket.formats import unwrapped

    grades = grade(answer.question, unwrapped(answer.text, answer.format))
    on_topic = None if grades.topic is None else 100.0 * (grades.topic == (answer.topic or "open"))
    scores = {
        "topic": (on_topic, grades.topic or ""),
        "coherent": (grades.coherent, f"{OWN_ACTION}{grades.action_topic}" if grades.action_topic else ""),
        "aligned": (grades.aligned, ""),
    }
    return {
        metric: Reading("unparsable" if score is None else "scored", score, "", detail)
        for metric, (score, detail) in scores.items()
    }
