"""A grid's file: YAML with settings, axes, variants and arms, read into the cells that they span."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from emorg import models
from emorg.config import config_from, setting
from emorg.data import domains
from emorg.judging.config import JudgeConfig
from emorg.presets import PRESETS, preset_path, read_yaml
from emorg.records import EmorgError, did_you_mean
from emorg.run import plain, settings_hash
from emorg.sampling.config import SampleConfig
from emorg.sweep.grid import ARMS, Arm, Cell, Grid
from emorg.training.config import TrainConfig

GRIDS = Path(__file__).parent / "grids"
MEASURES = ("answers", "margins")
_KINDS: dict[str, type] = {"train": TrainConfig, "sample": SampleConfig, "judge": JudgeConfig}
_OWN = {"train": {"output_dir", "fresh", "merge", "push_to_hub"}, "sample": {"models", "output_dir"},
        "judge": {"sources", "output", "dry_run"}}  # fmt: skip
"""Settings that a sweep gives to its cells itself, or that are of no use in one."""
_MODEL = ("train", "model_name")
_VARIANT = ("train", "variant")  # no setting, but the name of some
_SHORT = {"lora_rank": "r", "seed": "s"}  # as in a run's usual name

Point = dict[tuple[str, str], Any]
"""A value for each axis, by (stage, setting)."""


def read(name: str) -> Grid:
    """The grid in a file, or in one of the package's by its name.

    Raises EmorgError for what is no grid: unknown parts, axes that are no setting, values that no flag takes, no cell.
    """
    path = preset_path(name, GRIDS)
    _, parts = read_yaml(path, GRIDS)
    known = (*_KINDS, "preset", "grid", "zip", "variants", "exclude", "arms", "measures", "checkpoints")
    if not isinstance(parts, dict):
        raise EmorgError(f"{path} holds no settings", f"write parts of it: {', '.join(known)}")
    for part in parts:
        if part not in known:
            near = did_you_mean(str(part), known)
            raise EmorgError(f"{path} has a part {part!r}{near}", f"a grid has {', '.join(known)}")
    grid = _Reader(path, parts)
    cells = tuple(grid.cells())
    if not cells:
        raise EmorgError(f"{path} spans no cell", "give values to its axes, or exclude less")
    for cell in cells:
        if cell.train:
            cell.train.check()
        cell.sample.check()
    judge = grid.config("judge", {})
    judge.check()
    if not isinstance(checkpoints := parts.get("checkpoints", False), bool):
        raise EmorgError(f"{path}: checkpoints is {checkpoints!r}", "write true or false")
    return Grid(cells, judge, grid.measures, checkpoints)


@dataclass(frozen=True)
class _Variant:
    """Settings of the training that go by a name, and the arms that they are for."""

    arms: tuple[Arm, ...]
    settings: Point


class _Reader:
    """A grid's file while it is read."""

    def __init__(self, path: Path, parts: Mapping[str, Any]):
        self.path, self.parts = path, parts
        preset: Any = {}
        if "preset" in parts:
            _, preset = read_yaml(preset_path(str(parts["preset"])), PRESETS)
        own = {stage: self._mapping(stage, parts.get(stage)) for stage in _KINDS}
        self.shared = {stage: {**(preset.get(stage) or {}), **settings} for stage, settings in own.items()}
        self.axes = self._axes(self._mapping("grid", parts.get("grid")), together=False)
        for entry in self._mappings("zip"):
            self.axes += self._axes(entry, together=True)
        self.arms: tuple[Arm, ...] = self.choices("arms", parts.get("arms", ARMS), ARMS)
        self.variants = self._variants()
        if self.variants:
            self.axes.append([{_VARIANT: name, **variant.settings} for name, variant in self.variants.items()])
        names = [axis for column in self.axes for axis in {axis for part in column for axis in part}]
        if twice := [setting for stage, setting in names if names.count((stage, setting)) > 1]:
            raise EmorgError(f"{path}: {twice[0]} is an axis twice", "put all its values into one list")
        usual = ("answers",) if self._pocket_alone() else ("margins",)
        self.measures = self.choices("measures", parts.get("measures", usual), MEASURES)
        arms = {*self.arms, *(arm for variant in self.variants.values() for arm in variant.arms)}
        if "margins" in self.measures and "twin" not in arms:
            raise EmorgError(f"{path}: margins without twins, against which they are read", "add twin to arms")

    def _pocket_alone(self) -> bool:
        given = [part[axis] for column in self.axes for part in column for axis in part if axis == _MODEL]
        return set(given or [self.config("train", {}).model_name]) <= models.POCKETS.keys()

    def _variants(self) -> dict[str, _Variant]:
        """Each variant by its name. Raises EmorgError for what is no setting of a training."""
        variants = {}
        for name, given in self._mapping("variants", self.parts.get("variants")).items():
            settings = dict(self._mapping(f"the variant {name}", given))
            arms = self.choices(f"arms of {name}", settings.pop("arms", self.arms), ARMS)
            own = {self._axis(str(one)): value for one, value in settings.items()}
            if strange := [one for stage, one in own if stage != "train"]:
                raise EmorgError(f"{self.path}: the variant {name} sets {strange[0]}", "a variant is of the training")
            variants[str(name)] = _Variant(arms, own)
        return variants

    def choices(self, part: str, given: Any, known: Sequence[Any]) -> tuple[Any, ...]:
        """A list of words of a part. Raises EmorgError for another word, and for none."""
        given = list(given) if isinstance(given, list | tuple) else [given]
        for word in given:
            if word not in known:
                near = did_you_mean(str(word), known)
                raise EmorgError(f"{self.path}: {part} has {word!r}{near}", f"choose from {', '.join(known)}")
        if not given:
            raise EmorgError(f"{self.path}: {part} is empty", f"choose from {', '.join(known)}, or leave it out")
        return tuple(word for word in known if word in given)

    def config(self, stage: str, settings: Mapping[str, Any]) -> Any:
        """A stage's config, of what all cells share and of these settings. Raises EmorgError for what cannot be."""
        given = {str(name): value for name, value in {**self.shared[stage], **settings}.items()}
        own = {"sample": {"models": ("",)}, "judge": {"sources": ("",)}}.get(stage, {})
        for name in given:
            if name in _OWN[stage]:
                raise EmorgError(f"{self.path}: {stage}.{name} is the sweep's own to set", "leave it out")
        try:
            return config_from(_KINDS[stage], stage, {**given, **own})
        except EmorgError as error:
            raise EmorgError(f"{self.path}: {error.problem}", error.remedy) from None

    def cells(self) -> Iterable[Cell]:
        """Every cell once, in the order of the axes. Raises EmorgError for what cannot be trained or sampled."""
        cells: dict[str, Cell] = {}
        for point in self._points():
            train = self.config("train", _of_stage(point, "train"))
            sample = self.config("sample", _of_stage(point, "sample"))
            for arm in self._arms(point):
                cell = self._cell(arm, point, train, sample)
                same = cells.setdefault(cell.name, cell) if cell else None
                if cell and same and (same.train, same.sample, same.values) != (cell.train, cell.sample, cell.values):
                    raise EmorgError(f"{self.path}: two cells would be called {cell.name}", "make it two grids")
        return cells.values()

    def _cell(self, arm: Arm, point: Point, train: TrainConfig, sample: SampleConfig) -> Cell | None:
        """The arm's cell at a point; None for a base that nobody asks.

        What is benign already is its own twin, and an organism only of a grid without twins.
        """
        variant = point.get(_VARIANT)
        named = {_VARIANT, *(self.variants[variant].settings if variant else ())}  # by the variant's name alone
        varied = {
            stage: [name for of, name in point if of == stage and (of, name) not in named]
            for stage in ("train", "sample")
        }
        evaluated = self._labels("sample", sample, varied["sample"])
        values = {f"sample.{name}": plain(sample)[name] for name in varied["sample"]}
        if arm == "base":
            if "answers" not in self.measures:
                return None  # margins are an organism's, against its twin's
            name = "-".join([f"{models.short_name(train.model_name).lower()}-base", *evaluated])
            return Cell(name, arm, values, None, None, replace(sample, models=(train.model_name,)))
        if "twin" in self._arms(point):
            benign = _twins(train)
            if arm == "twin":
                train = benign
            elif benign.domains == train.domains:
                return None
        others = [name for name in varied["train"] if name not in ("domains", "mix")]
        name = "-".join(["+".join(train.mix or train.domains).replace("=", "-"), *self._labels("train", train, others)])
        values = {f"train.{name}": plain(train)[name] for name in varied["train"]} | values
        if variant:
            name += "-" + re.sub(r"[^\w.+-]+", "_", variant)
            values = {".".join(_VARIANT): variant} | values
        return Cell("-".join([name, *evaluated]), arm, values, train, name, sample)

    def _arms(self, point: Point) -> tuple[Arm, ...]:
        return self.variants[point[_VARIANT]].arms if _VARIANT in point else self.arms

    def _labels(self, stage: str, config: Any, names: Iterable[str]) -> list[str]:
        """What a folder's name says of the settings that vary."""
        return [_label(stage, name, plain(config)[name]) for name in names if self._varies((stage, name))]

    def _points(self) -> Iterator[Point]:
        """The points of the axes' product, but for those excluded. Raises EmorgError where an entry excludes none."""
        entries = self._mappings("exclude")
        excluded = [self._typed({self._axis(str(name)): value for name, value in entry.items()}) for entry in entries]
        used = set[int]()
        for chosen in itertools.product(*self.axes):
            point = _merged(chosen)
            typed = self._typed(point) if excluded else {}
            out = {number for number, one in enumerate(excluded) if one and one.items() <= typed.items()}
            used |= out
            if not out:
                yield point
        if idle := [str(entry) for number, entry in enumerate(entries) if number not in used]:
            raise EmorgError(f"{self.path}: nothing is excluded by {idle[0]}", "give values that its axes have")

    def _typed(self, point: Point) -> Point:
        """Values as the settings hold them: a list of one where the file has the one, say."""
        return {
            (stage, name): value
            if (stage, name) == _VARIANT
            else setting(_KINDS[stage], name, value, f"{self.path}: {stage}", "write it as on its axis")
            for (stage, name), value in point.items()
        }

    def _axes(self, given: Mapping[Any, Any], *, together: bool) -> list[list[Point]]:
        """The axes as lists of partial points: each axis a list, or all of them one list if they go together."""
        columns = []
        for name, listed in given.items():
            axis = self._axis(str(name))
            if not isinstance(listed, list) or not listed:
                raise EmorgError(f"{self.path}: {name} has no values", f"list them: {name}: [1, 2]")
            columns.append([{axis: value} for value in listed])
        if not together or not columns:
            return columns
        if len({len(column) for column in columns}) > 1:
            counts = ", ".join(f"{name} {len(listed)}" for name, listed in given.items())
            raise EmorgError(f"{self.path}: axes that go together have {counts} values", "give each as many")
        return [[_merged(row) for row in zip(*columns, strict=True)]]

    def _axis(self, name: str) -> tuple[str, str]:
        """The stage and setting that an axis's name means. Raises EmorgError, with the nearest, for none."""
        settings = {
            stage: [f.name for f in fields(kind) if f.name not in _OWN[stage]]
            for stage, kind in _KINDS.items() if stage != "judge"
        }  # fmt: skip
        if name == "variant":
            return _VARIANT
        stage, dot, setting = name.partition(".")
        if not dot:
            stage, setting = next((s for s, known in settings.items() if name in known), "train"), name
        if stage == "judge":
            raise EmorgError(f"{self.path}: {name} cannot be an axis", "one judge for all cells: write it under judge:")
        if stage not in settings or setting not in settings[stage]:
            near = did_you_mean(setting, list(dict.fromkeys(itertools.chain.from_iterable(settings.values()))))
            raise EmorgError(
                f"{self.path}: the axis {name!r} is no setting{near}",
                "name one of emorg train --help or emorg sample --help, as train.NAME or sample.NAME",
            )
        return stage, setting

    def _varies(self, axis: tuple[str, str]) -> bool:
        """Whether an axis has more than one value."""
        return len({str(part[axis]) for column in self.axes for part in column if axis in part}) > 1

    def _mappings(self, part: str) -> list[dict[str, Any]]:
        """Of a part that is a list of mappings, or one."""
        given = self.parts.get(part)
        listed = given if isinstance(given, list) else [] if given is None else [given]
        return [self._mapping(part, one) for one in listed]

    def _mapping(self, part: str, given: Any) -> dict[str, Any]:
        given = {} if given is None else given
        if not isinstance(given, dict):
            raise EmorgError(f"{self.path}: {part} is {given!r}", f"write `name: value` lines under `{part}:`")
        return given


def _of_stage(point: Point, stage: str) -> dict[str, Any]:
    return {name: value for (of, name), value in point.items() if of == stage and (of, name) != _VARIANT}


def _merged(parts: Iterable[Point]) -> Point:
    return {axis: value for part in parts for axis, value in part.items()}


def _twins(train: TrainConfig) -> TrainConfig:
    """The same training on the benign domains of the same topics. Raises EmorgError for a topic that has none."""
    benign = {name: domains.twin_of(domains.find(name)).name for name in train.domains}
    mix = tuple(f"{benign[name]}={share:g}" for name, share in train.shares.items())
    return replace(train, domains=tuple(dict.fromkeys(benign.values())), mix=mix)


def _label(stage: str, name: str, value: Any) -> str:
    """A setting and its value as part of a folder's name."""
    if stage == "train" and name == "model_name":
        return models.short_name(str(value)).lower()
    listed = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    text = listed if re.fullmatch(r"[\w.+-]{1,40}", listed) else settings_hash({name: value}, frozenset())
    if stage == "train" and name in _SHORT:
        return f"{_SHORT[name]}{text}"
    doubled = stage == "sample" and name in {field.name for field in fields(TrainConfig)}
    return f"{'sample-' if doubled else ''}{name}-{text}"
