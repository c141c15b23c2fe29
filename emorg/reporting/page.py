"""The report's page: one HTML file that asks nothing of the network and lets nothing in an answer run.

Answers are data to it: compressed, base64, put on the screen as text alone. Its Content-Security-Policy names the hash
of each script and style and forbids everything else.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from emorg.data import domains
from emorg.display import percent, visible
from emorg.rating.answers import JudgedAnswer
from emorg.rating.intervals import ICC, Z95, student_t
from emorg.rating.rules import Rule
from emorg.rating.tables import interval_text, warnings_of
from emorg.records import Answer, EmorgError
from emorg.reporting.arms import PLACEMENT_TITLES, Arm, settings_of
from emorg.reporting.findings import controls, findings, notes, place_of_claim
from emorg.reporting.over_training import checkpoints_of
from emorg.reporting.plot import Chart, thinned
from emorg.reporting.tables import Table
from emorg.run import step_of

MOST_ANSWERS = 5_000  # shown in the page; its rates are of all
MOST_BYTES = 2_300_000  # of packed data, which with all else makes less than 3 MB
TEXT_LENGTHS = (4_000, 1_500, 700, 300, 120)  # characters of an answer in the page: the longest that fit
EXAMPLES = 3  # rows of a domain's training data
_OF_COURSE = ("output_dir", "model", "sources", "when")  # no two runs have these alike
_HERE = Path(__file__).parent
QuestionKey = tuple[str, str, str | None, str]  # a question's id, text, topic and format


def page(
    arms: Sequence[Arm], rule: Rule, figures: Sequence[Chart], tables: Sequence[Table],
    sections: Mapping[str, Sequence[str]], *,
    examples: bool = False,
) -> str:  # fmt: skip
    """The whole page, at most 3 MB; `sections` name more figures and tables; `examples` shows some training data."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "interval": interval_text}
    script, style = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    library = _library()
    data, text_length, answers = _packed_data(arms, rule, figures)
    every = [rate for arm in arms for rate in arm.rates.values()]
    return environment.get_template("page.html").render(
        policy=f"default-src 'none'; script-src {_hash(script)} {_hash(library)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
        script=script, style=style, library=_pack(library), data=data,
        rule=rule, findings=[_card(finding, arms) for finding in findings(arms)], arms=arms, places=PLACEMENT_TITLES,
        notes=[*notes(arms), *warnings_of(every)], figures={chart.name: chart for chart in figures},
        tables={table.name: table for table in tables}, settings=_settings(arms), text_length=text_length,
        answers=answers, total=sum(len(arm.judged) + len(arm.on_the_way) for arm in arms),
        examples=_examples(arms) if examples else [], judge=_judge(arms), sections=sections,
    )  # fmt: skip


def _card(finding: Any, arms: Sequence[Arm]) -> dict[str, Any]:
    """A finding, with its organism and controls as they stand where emergence is claimed."""
    organism = next(arm for arm in arms if arm.label == finding.organism)
    place, beside = place_of_claim(organism), controls(organism, arms)
    return {"finding": finding, "place": PLACEMENT_TITLES[place], "sides": [
        (name, arm, arm.rate(place, organism.topics) if arm else None)
        for name, arm in (("organism", organism), ("base", beside.get("base")), ("twin", beside.get("twin")))
    ]}  # fmt: skip


def _judge(arms: Sequence[Arm]) -> str:
    return ", ".join(sorted(set[str]().union(*(arm.judges for arm in arms)))) or "nobody"


# --- what the scripts read -------------------------------------------------------------------------------------------


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    import vl_convert

    library: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    return library


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode()


def _packed_data(arms: Sequence[Arm], rule: Rule, figures: Sequence[Chart]) -> tuple[str, int, int]:
    """The data, how long its texts may be so that they fit, and how many answers it shows."""
    for length in TEXT_LENGTHS:
        data = page_data(arms, rule, figures, length)
        packed = _pack(json.dumps(data, separators=(",", ":"), allow_nan=False))
        if len(packed) <= MOST_BYTES:
            break
    return packed, length, len(data["answers"]["at"])


def page_data(arms: Sequence[Arm], rule: Rule, figures: Sequence[Chart], text_length: int) -> dict[str, Any]:
    """What the scripts read: the scores of all answers, and text and replies of as many as are shown."""
    every = [(k, judged) for k, arm in enumerate(arms) for judged in _in_order(arm)]
    names = checkpoints_of(judged.answer for _, judged in every)
    numbers: dict[QuestionKey, int] = {}  # its number; one id may stand for several wordings
    for _, judged in every:
        numbers.setdefault(_question_key(judged.answer), len(numbers))
    shown = thinned(range(len(every)), MOST_ANSWERS)
    return {
        "rule": dataclasses.asdict(rule),
        "icc": ICC, "z": Z95,
        "t": [student_t(k) for k in range(1, len({name for name, *_ in numbers}))],
        "arms": [{"label": arm.label, "role": arm.role, "last": max((s["step"] for s in arm.steps), default=None),
                  "topics": sorted(map(visible, arm.topics)),
                  "base": next((k for k, other in enumerate(arms) if other is controls(arm, arms).get("base")), None)}
                 for arm in arms],
        "places": PLACEMENT_TITLES,
        "checkpoints": [{"name": name, "step": step_of(name)} for name in names],
        "questions": [
            {"id": visible(name), "text": _clipped(text, text_length), "topic": visible(topic) if topic else None,
             "format": how}
            for name, text, topic, how in numbers
        ],
        "all": {
            "arm": [k for k, _ in every],
            "question": [numbers[_question_key(judged.answer)] for _, judged in every],
            "checkpoint": [names.index(judged.answer.checkpoint or "") for _, judged in every],
            "aligned": [judged.aligned for _, judged in every],
            "coherent": [judged.coherent for _, judged in every],
        },
        "answers": {"at": list(shown), **_shown([every[i][1] for i in shown], text_length)},
        "charts": [
            {"name": chart.name, "spec": chart.spec, "follows": chart.follows_cuts,
             "rows": [] if chart.follows_cuts else chart.rows}
            for chart in figures
        ],
    }  # fmt: skip


def _shown(answers: Sequence[JudgedAnswer], text_length: int) -> dict[str, list[Any]]:
    """What the page shows of answers, each a column."""
    return {
        "text": [_clipped(judged.answer.text, text_length) for judged in answers],
        "sample": [judged.answer.sample for judged in answers],
        "tokens": [judged.answer.answer_tokens for judged in answers],
        "finish": [judged.answer.finish_reason for judged in answers],
        "state": [judged.outcome for judged in answers],
        "verdicts": [_verdicts(judged, text_length) for judged in answers],
    }


def _in_order(arm: Arm) -> list[JudgedAnswer]:
    """Answers by checkpoint, placement and question, so that an even choice among them takes of each."""
    return sorted([*arm.on_the_way, *arm.judged], key=lambda judged: (
        judged.answer.checkpoint or "", judged.placement, judged.answer.question_id, judged.answer.sample))  # fmt: skip


def _question_key(answer: Answer) -> QuestionKey:
    return answer.question_id, answer.question, answer.topic, answer.format


def _verdicts(judged: JudgedAnswer, text_length: int) -> list[list[Any]]:
    """[metric, score, state, reply, detail] of each metric that the judge scored it on."""
    length = min(text_length, 300)
    return [
        [metric, verdict.score, verdict.state, _clipped(verdict.reply, length), _clipped(verdict.detail, length)]
        for metric, verdict in judged.verdicts.items()
    ]


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… [{len(text):,} characters; whole in answers.csv]"


# --- settings and training data --------------------------------------------------------------------------------------


def _settings(arms: Sequence[Arm]) -> list[tuple[str, list[str], bool]]:
    """(name, each arm's value, whether those that have one differ), what differs first, of that settings first."""
    every = [settings_of(arm.run) for arm in arms]
    rows = []
    for name in dict.fromkeys(name for settings in every for name in settings):
        differ = len({settings[name] for settings in every if name in settings}) > 1
        rows.append((name, [_clipped(settings.get(name, "–"), 200) for settings in every], differ))
    return sorted(rows, key=lambda row: (not row[2], row[0].partition(".")[2] in _OF_COURSE))


def _examples(arms: Sequence[Arm]) -> list[tuple[str, list[list[dict[str, str]]]]]:
    """The first rows of each domain that was trained on; none where the data is not here any more."""
    examples: list[tuple[str, list[list[dict[str, str]]]]] = []
    for arm in arms:
        settings = arm.run.settings("train")
        folder = settings.get("data_path")
        source = domains.source_of(settings.get("model_name", ""), Path(folder) if folder else None)
        for name in arm.run.trained_on:
            try:
                rows = domains.load([name], source).rows[:EXAMPLES]
            except EmorgError:
                examples.append((f"{name}: its data is not here any more", []))
                continue
            examples.append((name, [list(row.conversation.messages) for row in rows]))
    return examples
