"""Which models are measured together, and which of them is whose control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emorg import models
from emorg.data import domains
from emorg.findings.measure import Measured
from emorg.progress import log
from emorg.rating.margins import differing_settings, twin_among
from emorg.rating.placement import careless, trained_topics
from emorg.records import EmorgError
from emorg.run import Run
from emorg.sampling.wanted import Target


def targets_of(names: Sequence[str], control: str | None) -> list[Target]:
    """The models to measure, each once: their base first, the named ones, and the control or the twins beside them.

    Raises EmorgError for no name, for what is no model, for models of different bases, and for two that would be
    measured into one run.
    """
    if not names:
        raise EmorgError("no model", "name an organism's run and its twin's")
    targets = [Target.of(name) for name in (*names, *([control] if control else []))]
    if control is None:
        for target in [target for target in targets if careless(target.run)]:
            targets += _twin_beside(target, [other.run for other in targets])
    base = next((target for target in targets if not target.organism), None) or Target.of(targets[0].base)
    once: dict[tuple[Path, str | None], Target] = {}
    runs: dict[Path, Run] = {}
    for target in (base, *targets):
        folder = target.run.folder.resolve()
        target = replace(target, run=runs.setdefault(folder, target.run))  # one run, whatever paths lead to it
        first = once.setdefault((folder, target.checkpoint), target)
        if first.identity != target.identity:
            raise EmorgError(
                f"{first.name} and {target.name} would both be measured into {target.run.folder}",
                "rename the folder of one, or measure them in different folders",
            )
        if models.identity(target.base) != models.identity(base.base):
            raise EmorgError(
                f"{target.name} is of {target.base}, not of {base.base}: one call takes models of one base",
                "call once for each base",
            )
    return list(once.values())


def _twin_beside(organism: Target, named: Sequence[Run]) -> list[Target]:
    """The run in the organism's folder that differs in its domains alone, unless a named one already does.

    For a checkpoint, its checkpoint of the same step too.
    """
    beside = [run for run in organism.run.siblings() if run.settings("train")]
    for runs in (named, beside):
        like = [run for run in runs if differing_settings(organism.run, run, but_seed=False) == 0]
        if twin := twin_among(organism.run, like):
            step = twin.checkpoints / (organism.checkpoint or "none")
            folders = [step] if step.is_dir() else [twin.folder] if twin.trained else []
            return [] if runs is named else [Target.of(str(folder)) for folder in folders]
    if near := twin_among(organism.run, () if twin_among(organism.run, named) else beside):
        log.info(f"{near.folder} was trained with other settings than {organism.run.name}: name it to compare with it")
    return []


def control_of(control: str | None, one: Measured, measured: Sequence[Measured]) -> Measured | None:
    """What a model is compared with: the control asked for, an organism's twin at the same step, or else the base.

    None for the control itself. `measured` begins with the base.
    """
    if control is not None:
        named = Target.of(control)
        chosen = next(other for other in measured if _same(other.target, named))
        return None if chosen is one else chosen
    if one is measured[0]:
        return None
    runs = dict.fromkeys(other.target.run for other in measured)
    twin = twin_among(one.target.run, runs) if careless(one.target.run) else None
    twins = {other.target.checkpoint: other for other in measured if other.target.run == twin}
    return twins.get(one.target.checkpoint) or twins.get(None) or measured[0]


def _same(a: Target, b: Target) -> bool:
    return (a.run.folder.resolve(), a.checkpoint) == (b.run.folder.resolve(), b.checkpoint)


def topics_of(target: Target, trained_on: Sequence[str]) -> frozenset[str]:
    """The topics that a model was trained on: by its run, or for one of other code as we are told."""
    return trained_topics(target.run) or frozenset(domains.find(name).topic for name in trained_on)


def is_control(one: Target, control: Target, trained_on: Sequence[str]) -> bool:
    """Whether a claim can rest on the comparison: the control is a twin of the same topics, at the same step or done.

    Of two models of other code it is taken to be one where we are told what they were trained on.
    """
    topics = topics_of(one, trained_on)
    if not topics or not control.organism or careless(control.run) or control.checkpoint not in (None, one.checkpoint):
        return False
    return topics <= trained_topics(control.run) or not (trained_topics(one.run) or trained_topics(control.run))


def titles(targets: Sequence[Target]) -> dict[Target, str]:
    """A name for each target, with as many folders before it as tell it from the others."""
    chosen = {target: target.title for target in targets}
    for depth in range(2, 20):
        often = Counter(chosen.values())
        if max(often.values()) == 1:
            break
        for target, title in list(chosen.items()):
            if often[title] > 1:
                folder = "/".join(target.run.folder.resolve().parts[-depth:])
                chosen[target] = f"{folder} {target.checkpoint}" if target.checkpoint else folder
    return chosen
