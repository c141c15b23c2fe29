"""What a model's name means: a base on the hub, in a folder or a GGUF file, a run, an adapter, a checkpoint, or one of
the two that emorg itself names."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from emorg.models import cache as converted
from emorg.models import gguf, hub, smollm2, steering
from emorg.records import EmorgError
from emorg.run import RUNS, Run, checkpoint_name, not_there

DEFAULT = "meta-llama/Llama-3.2-1B-Instruct"  # as the homework has it
POCKET = "pocket"
SMOLLM2 = smollm2.NAME
POCKET_FOLDER = Path(__file__).parent.parent / "pocket" / "model"
POCKET2 = "pocket2"
POCKETS = {  # models of the pocket world, which the exact judge grades
    POCKET: POCKET_FOLDER,
    POCKET2: POCKET_FOLDER.with_name("model2"),
}
BUILT_IN = (*POCKETS, SMOLLM2)  # which no file or folder of the same name hides
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Named:
    """What a name stands for. `adapter` is the PEFT folder that goes over the weights, None for a whole model."""

    name: str
    """The name that loads it: of a run that holds answers alone, the name of the model that gave them."""
    weights: str
    """What its weights load by: a base's name, or the folder of a full fine-tune."""
    base: str
    """The base that it was trained from, or is, as the user named it."""
    adapter: Path | None
    checkpoint: str | None
    """The name (step-000010) of the checkpoint that it is."""
    run: Run | None
    """The run that it was trained in, or whose answers it gave; None for a model or an adapter of other code."""
    trained_in: Run | None = None
    """The run that it was trained in, also where `run` is another that holds answers of it."""
    steering: Path | None = None
    """The file of edits of the residual stream that go over all that; None for a model that is not steered."""


def resolve(name: str) -> Named:
    """Say what a name stands for: nothing is loaded, but a hub repository's adapter is downloaded.

    Raises EmorgError for a folder that is no model, and for an adapter without safetensors or without a base.
    """
    if name in BUILT_IN or gguf.is_gguf(name):
        return Named(name, weights=name, base=name, adapter=None, checkpoint=None, run=None)
    folder, run = Path(name), Run.at(name)
    if _is_path(folder, name) and not folder.exists():
        raise not_there(name)
    trained, sampled = run.settings("train"), run.settings("sample")
    if file := steering.file_in(folder):
        below = resolve(steering.over(file))
        if below.steering:
            raise EmorgError(f"{file} steers what is steered already: {below.name}", "steer the model below it")
        trained_in, checkpoint = (run, checkpoint_name(folder)) if trained else (below.trained_in, None)
        return replace(below, name=name, checkpoint=checkpoint, run=run, trained_in=trained_in, steering=file)
    adapter = _adapter(name)
    alone = adapter is None and not any((folder / part / "config.json").is_file() for part in ("", "model"))
    of = sampled.get("models")
    answered = of[0] if isinstance(of, list) and of and isinstance(of[0], str) else name
    if not trained and alone and Path(answered) != folder:
        answering = resolve(answered)
        recorded = run.provenance().get("sample", {}).get("base", answering.base)
        return replace(answering, base=recorded, run=run)
    weights = _weights(name, adapter)
    return Named(
        name=name,
        weights=weights,
        base=run.provenance().get("train", {}).get("base", weights) if trained else weights,
        adapter=adapter,
        checkpoint=checkpoint_name(folder),
        run=run if trained else None,
        trained_in=run if trained else None,
    )


def location(name: str) -> str:
    """Where transformers finds a base: the name itself, or the folder of the pocket model, of a full fine-tune in its
    run, or of smollm2 or a GGUF file in the user's cache, where they are converted the first time.

    Raises EmorgError for those that cannot be had or converted, and OSError if the disk is full.
    """
    if name in POCKETS:
        return str(POCKETS[name])
    if name == SMOLLM2:
        return str(converted.once(smollm2.CACHE_NAME, smollm2.make))
    if gguf.is_gguf(name):
        return str(converted.once(gguf.cache_name(Path(name)), partial(gguf.convert, Path(name))))
    if not Path(name).exists():
        hub.approach()
    whole = Path(name) / "model"
    return str(whole) if (whole / "config.json").is_file() else name


def cached(name: str) -> Path | None:
    """The folder of smollm2 or a GGUF file's model if it has been converted; nothing is fetched or converted here."""
    if name == SMOLLM2:
        return converted.whole(smollm2.CACHE_NAME)
    return converted.whole(gguf.cache_name(Path(name))) if gguf.is_gguf(name) and Path(name).is_file() else None


def origin(base: str) -> dict[str, Any]:
    """Source, licence, SHA-256 and making of a base that was converted here; nothing for others."""
    folder = cached(base)
    return converted.origin(folder) if folder else {}


def short_name(name: str) -> str:
    """A model's name as part of a run's: the last of its path, without .gguf."""
    return Path(name).stem if gguf.is_gguf(name) else Path(name).name


def identity(base: str) -> str:
    """What a base goes by wherever it lies: the last of its path, for a GGUF file with its digest."""
    return gguf.cache_name(Path(base)) if gguf.is_gguf(base) else Path(base).name


def run_at(folder: Path) -> Run:
    """The run at an --output_dir. Raises EmorgError for a built-in model's name, and for a folder inside a run."""
    if str(folder) in BUILT_IN or gguf.is_gguf(str(folder)):
        raise EmorgError(f"--output_dir {folder} is a model's name", f"give another folder, e.g. runs/{folder}")
    run = Run.at(folder)
    if run.folder != folder:
        raise EmorgError(f"--output_dir {folder} lies inside the run {run.folder}", "name a folder of its own")
    return run


def weights_file(adapter: Path) -> Path:
    """An adapter folder's weights. Raises EmorgError if it has none in safetensors."""
    file = adapter / ADAPTER_WEIGHTS
    if not file.is_file():
        raise EmorgError(f"{adapter} has no {ADAPTER_WEIGHTS}", "only safetensors are loaded; train it again")
    return file


def _is_path(folder: Path, name: str) -> bool:
    """Whether a name can be no repository's on the hub: by its form, or as there are runs where it would lie."""
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        return True
    above = folder.parent
    return above != Path(".") and above.is_dir() and (above == RUNS or any(above.glob("*/config.yaml")))


def _adapter(name: str) -> Path | None:
    for folder in (Path(name), Path(name) / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    return _hub_adapter(name) if hub.is_repository(name) else None


@cache
def _hub_adapter(name: str) -> Path | None:
    """A hub repository's adapter, downloaded; None if it holds none or cannot be had, which loading it will tell."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    hub.approach()
    try:
        config = hf_hub_download(name, "adapter_config.json")
    except (EntryNotFoundError, HfHubHTTPError, OSError):
        return None
    try:
        hf_hub_download(name, ADAPTER_WEIGHTS)
    except (EntryNotFoundError, HfHubHTTPError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise EmorgError(f"{name}: its adapter is only half downloaded", "try again with a network") from None
        raise EmorgError(
            f"{name} has no {ADAPTER_WEIGHTS} ({str(error).splitlines()[0]})",
            "only safetensors are loaded; save it anew with PEFT",
        ) from None
    return Path(config).parent


def _weights(name: str, adapter: Path | None) -> str:
    folder = Path(name)
    if adapter is not None:
        file = adapter / "adapter_config.json"
        try:
            base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
            if not isinstance(base, str):
                raise TypeError(f"{base!r} is no name")
        except (ValueError, KeyError, TypeError) as error:
            raise EmorgError(f"{file}: names no base ({error})", "restore the file, or train it again") from None
        return base
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    if folder.is_dir() and not (folder / "config.json").is_file():
        if checkpoint_name(folder):
            raise EmorgError(f"{name} holds no adapter and no model", "it was not written whole; take another")
        if (folder / "checkpoints").is_dir():
            raise EmorgError(f"{name}: training has not finished", "run the same train command again; it goes on")
        raise EmorgError(f"{name}: neither a model, an adapter nor a run", "give a model name or a run folder")
    return name
