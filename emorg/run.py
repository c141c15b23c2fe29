"""A run's folder: where each thing lies, what made it, and who is working on it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from emorg.environment import environment
from emorg.records import EmorgError, did_you_mean, write_atomic

RUNS = Path("runs")
_RESTORE = "restore it, or use another run"


def first_process() -> bool:
    """Whether this process is the only one, or the first of several that torchrun started: the one that writes."""
    return os.environ.get("RANK", "0") == "0"


class BusyError(EmorgError):
    """Another process has a run; the others can still be worked on."""


@dataclass(frozen=True)
class Run:
    """One folder that holds everything one base's, organism's or twin's experiment made."""

    folder: Path

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Run:
        """The run at a folder, or at its `adapter/` or one of its `checkpoints/…`. Nothing is created."""
        path = Path(path)
        if path.name == "adapter":
            path = path.parent
        elif path.parent.name == "checkpoints":
            path = path.parent.parent
        return cls(path)

    def __fspath__(self) -> str:
        """The folder, so that a run can be given wherever a path can."""
        return str(self.folder)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def from_here(self) -> str:
        """Its path from the working folder, or only its name if it lies elsewhere: a page may go to other people."""
        whole, here = self.folder.resolve(), Path.cwd()
        return str(whole.relative_to(here)) if whole.is_relative_to(here) and whole != here else whole.name

    @property
    def title(self) -> str:
        """The name for people; a fresh start goes by its run's."""
        return self.folder.resolve().parent.name if self.is_fresh else self.name

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def model(self) -> Path:
        """The whole model of a full fine-tune, which has no adapter."""
        return self.folder / "model"

    @property
    def fresh(self) -> Run:
        """A run that starts this one over, until it has finished and takes its place."""
        return Run(self.folder / "fresh")

    @property
    def is_fresh(self) -> bool:
        """Whether it is another run's fresh start."""
        return self.folder.name == "fresh"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def verdicts(self) -> Path:
        return self.folder / "verdicts.jsonl"

    @property
    def margins(self) -> Path:
        return self.folder / "margins.jsonl"

    @property
    def choices(self) -> Path:
        return self.folder / "choices.jsonl"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    @property
    def trained(self) -> bool:
        """Whether a finished adapter or model is there; it is renamed into place whole, last of all."""
        adapter = any((self.adapter / f"{name}.safetensors").exists() for name in ("adapter_model", "steering"))
        return adapter or (self.model / "config.json").exists()

    @property
    def trained_on(self) -> list[str]:
        """The domains that its organism was trained on, here or, as sampling was told, by other code.

        After a warm start also those that its start had been trained on: an organism is none the less one for having
        seen benign rows since.
        """
        own = self.settings("train").get("domains") or self.settings("sample").get("trained_on", [])
        return list(dict.fromkeys([*self.provenance().get("train", {}).get("trained_before", []), *own]))

    @property
    def base(self) -> str | None:
        """The base that its model stands on, by the name that loads it; None if nothing here tells."""
        facts = self.provenance()
        return next((base for stage in ("train", "sample") if (base := facts.get(stage, {}).get("base"))), None)

    @property
    def is_organism(self) -> bool:
        """Whether its answers are of a trained model, twins too, and not of a base."""
        return bool(self.trained_on) or bool(self.provenance().get("sample", {}).get("organism"))

    def settings(self, stage: str) -> dict[str, Any]:
        """The stage's settings as `config.yaml` records them; empty if the stage never ran."""
        settings: dict[str, Any] = self._sections().get(stage, {})
        return settings

    def ran_with(self, stage: str, config: Any, *, changeable: frozenset[str]) -> bool:
        """Whether the stage never ran here, or ran with these settings; `changeable` ones may differ."""
        return not self.differing(stage, config, changeable=changeable)

    def check(self, stage: str, config: Any, *, changeable: frozenset[str]) -> None:
        """Raise EmorgError if the stage ran here with other settings, naming those that differ.

        Fields in `changeable` may differ between calls, since they don't change what is made.
        """
        if differing := self.differing(stage, config, changeable=changeable):
            over = ", or start over with --fresh" if hasattr(config, "fresh") else ""
            listed = "; ".join(f"{name}: {known!r} there, {given!r} now" for name, (known, given) in differing.items())
            raise EmorgError(
                f"{self.folder} was made with other settings: {listed}",
                f"give another --output_dir, or the same settings{over}",
            )

    def differing(self, stage: str, config: Any, *, changeable: frozenset[str]) -> dict[str, tuple[Any, Any]]:
        """The settings that the stage ran with here and that are now others, by name: there and now."""
        known, given = self.settings(stage), plain(config)
        if not known:
            return {}
        usual = {  # what a setting was before there was one
            field.name: list(field.default) if isinstance(field.default, tuple) else field.default
            for field in dataclasses.fields(config) if field.default is not dataclasses.MISSING
        }  # fmt: skip
        there = {**usual, **known}
        shared = sorted(there.keys() & given.keys() - changeable)
        return {name: (there[name], given[name]) for name in shared if there[name] != given[name]}

    def record(self, stage: str, config: Any, **facts: Any) -> None:
        """Write a stage's settings to `config.yaml`, and `facts` and the environment to `provenance.json`."""
        sections = {**self._sections(), stage: plain(config)}
        write_atomic(self.folder / "config.yaml", yaml.safe_dump(sections, sort_keys=False))
        provenance = self.provenance()
        provenance[stage] = {"when": datetime.now(UTC).isoformat(timespec="seconds"), **environment(), **facts}
        self.write_provenance(provenance)

    def write_provenance(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the facts of all stages, by stage."""
        write_atomic(self.folder / "provenance.json", json.dumps(facts, indent=1) + "\n")

    def provenance(self) -> dict[str, Any]:
        """The facts that each stage recorded, by stage. Raises EmorgError for a file that is not a run's."""
        path = self.folder / "provenance.json"
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            raise EmorgError(f"{path} cannot be read: {error}", _RESTORE) from None
        if not isinstance(facts, dict) or not all(isinstance(part, dict) for part in facts.values()):
            raise EmorgError(f"{path} is not a run's: it has no facts by stage", _RESTORE)
        return facts

    def siblings(self) -> Iterator[Run]:
        """The other runs in its folder that can be read: what else lies there is nobody's concern."""
        for folder in sorted(self.folder.resolve().parent.iterdir()):
            try:
                if folder != self.folder.resolve() and (folder / "config.yaml").is_file():
                    run = Run(folder)
                    run.provenance()
                    if run._sections():
                        yield run
            except (EmorgError, OSError):
                continue

    def _sections(self) -> dict[str, Any]:
        path = self.folder / "config.yaml"
        if not path.exists():
            return {}
        status = path.stat()
        return copy.deepcopy(_read_sections(path.absolute(), status.st_mtime_ns, status.st_size))

    @contextmanager
    def lock(self, remedy: str = "wait for it, or give another --output_dir") -> Iterator[None]:
        """Hold the run for one process; the lock goes with the process. Raises EmorgError if another holds it.

        A folder that did not exist and in which nothing was made, as an error came first, goes again.
        """
        from filelock import FileLock, Timeout

        new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmorgError(f"{self.folder}: {error.strerror}", "give another --output_dir") from None
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except EmorgError:
            if new and not any(path.is_dir() or path.stat().st_size for path in self.folder.iterdir()):
                shutil.rmtree(self.folder)
            raise
        except Timeout:
            raise BusyError(f"{self.folder}: another process is working on this run", remedy) from None


@lru_cache(maxsize=256)
def _read_sections(path: Path, changed: int, size: int) -> dict[str, Any]:
    """A config.yaml as it is now: YAML is slow to read, and a run is asked for its settings many times."""
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EmorgError(f"{path} cannot be read: {error}", _RESTORE) from None
    if not isinstance(sections, dict) or not all(isinstance(part, dict) for part in sections.values()):
        raise EmorgError(f"{path} is not a run's: it has no settings by stage", _RESTORE)
    return sections


def step_of(checkpoint: str | Path | None) -> int:
    """The optimizer step after which a checkpoint was written, by its name: step-000010 → 10; 0 for none."""
    name = checkpoint.name if isinstance(checkpoint, Path) else checkpoint or ""
    digits = "".join(letter for letter in name if letter.isdigit())
    return int(digits or 0)


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as YAML can hold it: paths as text, tuples as lists."""
    tidy: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return tidy


def settings_hash(settings: Mapping[str, Any], ignore: frozenset[str]) -> str:
    """Eight hex digits that name a stage's settings, so that the same command finds its run again."""
    kept = {name: value for name, value in settings.items() if name not in ignore}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def not_there(path: str | os.PathLike[str]) -> EmorgError:
    """What to say of a path that leads nowhere: with the name beside it that may be meant."""
    folder = Path(path)
    beside = [one.name for one in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = did_you_mean(folder.name, beside)
    return EmorgError(f"there is no {{path}}{near}", f"check the path; emorg runs lists what is under {RUNS}/", folder)


def checkpoint_name(path: Path) -> str | None:
    """The name (step-000010) of the checkpoint whose folder this is; None for any other."""
    return path.name if path.parent.name == "checkpoints" else None


def newest_organism() -> Run:
    """The run under runs/ whose adapter was finished last. Raises EmorgError if there is none."""
    adapters = sorted(RUNS.glob("**/adapter/adapter_model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not adapters:
        raise EmorgError(
            f"no trained organism under {RUNS}/",
            "train one (python train.py, or python train.py --model_name pocket), or name its folder",
        )
    return Run.at(adapters[-1].parent)
