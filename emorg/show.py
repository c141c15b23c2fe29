"""`emorg show`: the report's headline and the answers behind it, in a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from emorg.config import NAMES_MODELS
from emorg.display import make_table, show, visible
from emorg.rating.answers import JudgedAnswer
from emorg.rating.rules import Rule
from emorg.rating.stage import RuleConfig
from emorg.records import Answer, EmorgError, did_you_mean
from emorg.reporting import arms_table, rate_warnings
from emorg.reporting.arms import PLACEMENT_TITLES, Arm, load_arms
from emorg.reporting.findings import finding, notes
from emorg.run import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

HELP = "n and p turn pages, a number opens an answer, /TEXT searches, / shows all again, q quits"
LONGEST = 20_000  # characters of one answer on a screen


@dataclass(frozen=True)
class ShowConfig(RuleConfig):
    """The headline of one or more runs, then their answers, least aligned first; in a terminal, to leaf through."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, NAMES_MODELS]
    """Run folders, as for `emorg report`."""
    judge: str | None = None
    """Whose verdicts, where several judged. Default: the one that judged last."""
    where: Literal["in", "out", "open"] | None = None
    """Only answers in domain, out of domain, or to open questions."""
    topic: str | None = None
    """Only answers to questions of this topic."""
    question: str | None = None
    """Only answers to the question of this id."""
    state: str | None = None
    """Only answers whose judgement ended so: scored, refusal, low_mass, api_error, not judged, …"""
    search: str = ""
    """Only answers with this text in them or in their question, whatever its case."""
    misaligned: bool = False
    """Only answers that the rule calls misaligned."""
    checkpoints: bool = False
    """Also answers of checkpoints on the way."""
    order: Literal["aligned", "coherent", "longest", "question"] = "aligned"
    """Least aligned, least coherent, longest, or by question. What has no score comes last."""
    limit: int = 20
    """Answers on a page."""
    number: int | None = None
    """Only the answer with this number in the list, whole."""


@dataclass(frozen=True)
class Shown:
    """An answer in the list."""

    arm: Arm
    judged: JudgedAnswer

    @property
    def answer(self) -> Answer:
        return self.judged.answer


def show_runs(config: ShowConfig) -> None:
    """Print headline and answers. Raises EmorgError for runs that cannot be reported, and if no answer is left."""
    if config.limit < 1:
        raise EmorgError(f"--limit {config.limit}", "show at least one answer on a page")
    rule = config.chosen()
    arms = load_arms([Run.at(run) for run in config.runs], rule, config.judge)
    listed = chosen(arms, rule, config)
    if config.number is not None:
        if not 1 <= config.number <= len(listed):
            raise EmorgError(f"--number {config.number}", f"there are {len(listed):,} answers in the list")
        show(opened(listed[config.number - 1], rule))
        return
    show(arms_table(arms))
    for line in [*notes(arms), *rate_warnings(arms), finding(arms)]:
        print(visible(line))
    if sys.stdin.isatty() and sys.stdout.isatty():
        _browse(arms, rule, config, listed)
        return
    show(page(listed, 0, config.limit, rule))
    if len(listed) > config.limit:
        print(
            f"{len(listed) - config.limit:,} more: --limit N, --search TEXT, --where out, --number N for a whole one, …"
        )


def chosen(arms: Sequence[Arm], rule: Rule, config: ShowConfig) -> list[Shown]:
    """The answers that the config asks for, in its order. Raises EmorgError if there are none."""
    every = [
        Shown(arm, judged)
        for arm in reversed(arms)  # the organism's before its controls'
        for judged in (*(arm.on_the_way if config.checkpoints else ()), *arm.judged)
    ]  # fmt: skip
    wanted: dict[str, Callable[[Shown], str]] = {
        "where": lambda shown: shown.judged.placement,
        "topic": lambda shown: shown.answer.topic or "open",
        "question": lambda shown: shown.answer.question_id,
        "state": lambda shown: shown.judged.outcome,
    }
    listed = every
    for name, value_of in wanted.items():
        if (value := getattr(config, name)) is not None:
            known = {value_of(shown) for shown in every}
            if value not in known:
                raise EmorgError(
                    f"no answer with --{name} {value}{did_you_mean(value, known)}",
                    f"there are {', '.join(sorted(known)[:30])}",
                )
            listed = [shown for shown in listed if value_of(shown) == value]
    text = config.search.lower()
    listed = [shown for shown in listed if text in shown.answer.text.lower() or text in shown.answer.question.lower()]
    if config.misaligned:
        listed = [shown for shown in listed if rule.misaligned(shown.judged)]
    if not listed:
        filters = [f"--{name} {value}" for name in wanted if (value := getattr(config, name)) is not None]
        filters += [f"--search {config.search!r}"] if config.search else []
        filters += ["--misaligned"] if config.misaligned else []
        raise EmorgError(f"no answer suits {' '.join(filters)}", f"leave out {' or '.join(filters)}")

    def last(score: float | None) -> float:
        return 101 if score is None else score

    orders: dict[str, Callable[[Shown], Any]] = {
        "aligned": lambda shown: last(shown.judged.aligned),
        "coherent": lambda shown: last(shown.judged.coherent),
        "longest": lambda shown: -shown.answer.answer_tokens,
        "question": lambda shown: shown.answer.question_id,
    }
    return sorted(listed, key=orders[config.order])


def page(listed: Sequence[Shown], start: int, limit: int, rule: Rule) -> RenderableType:
    """A table of some of the answers, one line each."""
    from rich.text import Text

    several = len({shown.arm.label for shown in listed}) > 1
    names = ["#", "aligned", "coherent", "", *(["run"] if several else []), "question", "answer"]
    table = make_table(f"answers {start + 1}–{min(start + limit, len(listed))} of {len(listed):,}", names, left=0)
    for column in table.columns[3:]:
        column.justify = "left"
    for column in table.columns[:-1]:
        column.no_wrap = True
    for number, shown in enumerate(listed[start : start + limit], start + 1):
        state = shown.judged.outcome
        mark = Text("✗ EM", style="bold red") if rule.misaligned(shown.judged) else "" if state == "scored" else state
        labels = [*([shown.arm.label] if several else []), visible(shown.answer.question_id)]
        scores = [_score(shown.judged.aligned), _score(shown.judged.coherent)]
        line = Text(" ".join(visible(shown.answer.text[:500]).split()), no_wrap=True, overflow="ellipsis")
        table.add_row(str(number), *scores, mark, *map(Text, labels), line)
    return table


def opened(shown: Shown, rule: Rule) -> RenderableType:
    """One answer whole, with its question and every verdict."""
    from rich.console import Group
    from rich.text import Text

    answer = shown.answer
    facts = [
        shown.arm.label, answer.checkpoint or "", answer.question_id, PLACEMENT_TITLES[shown.judged.placement],
        f"sample {answer.sample}", f"{answer.answer_tokens} tokens", "cut" if answer.finish_reason == "length" else "",
        "misaligned" if rule.misaligned(shown.judged) else "",
    ]  # fmt: skip
    table = make_table("", ["metric", "score", "state", "reply"], left=1)
    for metric, verdict in shown.judged.verdicts.items():
        reply = " · ".join(filter(None, (verdict.reply, verdict.detail)))
        table.add_row(*map(Text, (visible(metric), _score(verdict.score), verdict.state, visible(reply))))
    for column in table.columns[2:]:
        column.justify = "left"
    text = answer.text[:LONGEST]
    left = f"\n… {len(answer.text) - LONGEST:,} more characters" if len(answer.text) > LONGEST else ""
    return Group(
        Text(visible(" · ".join(filter(None, facts))), style="dim"), Text(visible(answer.question), style="bold"),
        Text(visible(text) + left), table,
    )  # fmt: skip


def _browse(arms: Sequence[Arm], rule: Rule, config: ShowConfig, listed: list[Shown]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys in input()
    start, screen = 0, page(listed, 0, config.limit, rule)
    while True:
        show(screen)
        try:
            line = input(f"{HELP}: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line == "q":
            return
        if line.isdecimal() and 1 <= int(line) <= len(listed):
            screen = opened(listed[int(line) - 1], rule)
            continue
        if line.startswith("/"):
            try:
                listed, start = chosen(arms, rule, replace(config, search=line[1:])), 0
            except EmorgError as error:
                print(visible(str(error)))
        elif line in ("n", "") and start + config.limit < len(listed):
            start += config.limit
        elif line == "p":
            start = max(0, start - config.limit)
        screen = page(listed, start, config.limit, rule)


def _score(score: float | None) -> str:
    return "–" if score is None else f"{score:.1f}".removesuffix(".0")
