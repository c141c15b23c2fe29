"""A comparison of mitigations as its file has it: a grid with variants, one of them plain, and their controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emorg.presets import read_yaml
from emorg.records import EmorgError, did_you_mean

BASE, TWIN, PLAIN = "base", "twin", "plain"
OF_PLAIN = {"preventative": ("shift", "random"), "ablate_in_training": ("shift", "random"), "interleave_rank": (PLAIN,)}
"""Settings, and the words of theirs that stand for something of the plain organism's."""
_FIXED = ("model_name", "seed")  # which a variant cannot set: it would be compared with what it is not


@dataclass(frozen=True)
class Comparison:
    """The grid's `parts` but for its `controls`, which name the variant that each is held against."""

    parts: dict[str, Any]
    controls: dict[str, str]

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Each variant's settings by its name."""
        own: dict[str, dict[str, Any]] = self.parts["variants"]
        return own

    @property
    def needs_plain(self) -> bool:
        """Whether some variant cannot be trained before the plain one."""
        return any(map(needs_plain, self.variants.values()))

    @property
    def directed(self) -> bool:
        """Whether some variant needs the plain one's direction."""
        return any(name != "interleave_rank" for own in self.variants.values() for name in _words_in(own))

    def first(self) -> dict[str, Any]:
        """The grid of what can be trained before the plain organism is there."""
        kept = {name: own for name, own in self.variants.items() if not needs_plain(own)}
        parts = {**self.parts, "variants": kept}
        excluded = parts.get("exclude") or []
        some = excluded if isinstance(excluded, list) else [excluded]
        left = [one for one in some if not isinstance(one, dict) or str(one.get("variant", PLAIN)) in kept]
        return {name: part for name, part in {**parts, "exclude": left}.items() if name != "exclude" or left}

    def filled(self, words: Mapping[str, str]) -> dict[str, Any]:
        """The whole grid, with paths in the place of what stands for something of the plain organism's."""
        filled = {
            name: {key: words[value] if key in _words_in(own) else value for key, value in own.items()}
            for name, own in self.variants.items()
        }
        return {**self.parts, "variants": filled}


def needs_plain(settings: Mapping[str, Any]) -> bool:
    """Whether a variant names something of the plain organism's."""
    return bool(_words_in(settings))


def _words_in(settings: Mapping[str, Any]) -> list[str]:
    """The settings whose value is such a word."""
    return [name for name, words in OF_PLAIN.items() if isinstance(settings.get(name), str) and settings[name] in words]


def read_comparison(path: Path, beside: Path) -> Comparison:
    """Read a comparison from a file; `beside` is where the package's own lie.

    Raises EmorgError for a grid without a plain variant, for variants called base or twin, for axes beside the seed,
    and for controls that are no other variant.
    """
    _, parts = read_yaml(path, beside)
    variants = parts.get("variants") if isinstance(parts, dict) else None
    if not isinstance(variants, dict) or not all(isinstance(own, dict | None) for own in variants.values()):
        raise EmorgError(f"{path} has no variant `{PLAIN}`", "write variants: and under it plain: {}, KL 1: {…}, …")
    named = {str(name): own or {} for name, own in variants.items()}
    if PLAIN not in named:
        raise EmorgError(f"{path} has no variant `{PLAIN}`", "write variants: and under it plain: {}, KL 1: {…}, …")
    for name, own in named.items():
        if name in (BASE, TWIN):
            raise EmorgError(f"{path}: a variant is called {name}, as what it is compared with", "call it otherwise")
        if fixed := [setting for setting in own if setting.removeprefix("train.") in _FIXED]:
            raise EmorgError(f"{path}: the variant {name} sets {fixed[0]}", "compare trainings of one base and seeds")
    if needs_plain(named[PLAIN]):
        raise EmorgError(f"{path}: {PLAIN} names something of its own", "leave it plain, and give that another name")
    axes = [*(parts.get("grid") or {}), *(["zip"] if parts.get("zip") else [])]
    if others := [axis for axis in axes if str(axis) not in ("seed", "train.seed")]:
        raise EmorgError(
            f"{path} varies {others[0]}: what is not a variant or a seed would be taken for more seeds",
            "make a grid of each of its values",
        )
    controls = parts.get("controls") or {}
    if not isinstance(controls, dict):
        raise EmorgError(f"{path}: controls is {controls!r}", "write `variant: its control` lines under `controls:`")
    whose = {str(name): str(control) for name, control in controls.items()}
    for name, control in whose.items():
        for one in (name, control):
            if one not in named:
                raise EmorgError(f"{path}: no variant {one!r}{did_you_mean(one, named)}", "controls are variants")
        if name == control:
            raise EmorgError(f"{path}: {name} is its own control", "name another")
    left = {name: part for name, part in parts.items() if name != "controls"}
    return Comparison({**left, "variants": named}, whose)
