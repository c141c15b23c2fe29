"""Models out of GGUF files: dequantised once to bf16 safetensors in the user's cache, where everything loads them."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.progress import log
from emorg.records import EmorgError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3": "Gemma 3"}
PLAIN = ("F32", "F16", "BF16")  # which are not quantised
_PROBE = "It's 12,345.60 €!\n\n  In 2024 they'd say: don't-stop_it (x1)\tДа 中文"
_SAFETENSORS = "take the model's own safetensors, by its name on the hub"
_BROKEN = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError, OSError)


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.lower().endswith(".gguf") and not Path(name).is_dir()


def cache_name(file: Path) -> str:
    """What a GGUF file's model goes by wherever the file lies: its stem, and the start of its SHA-256."""
    return f"{file.stem}-{sha256(file)[:12]}"


def sha256(file: Path) -> str:
    """A file's SHA-256. Raises EmorgError for one that cannot be read."""
    try:
        status = file.stat()
        return _sha256(file.absolute(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise EmorgError(f"{file}: {error.strerror}", "name a GGUF file that can be read") from None


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def need_gguf(what: str) -> None:
    """Raise EmorgError if gguf, of the extra `gguf`, is not installed though this needs it."""
    if find_spec("gguf") is None:
        raise EmorgError(
            f"{what} needs the package gguf, which is not installed", "pip install 'emorg[gguf]', or pip install gguf"
        )


def convert(file: Path, folder: Path) -> dict[str, Any]:
    """Write the model and tokenizer of a GGUF file to a folder, dequantised to bf16; returns how it was made.

    Raises EmorgError for a file that is damaged or of another architecture, and OSError if the disk is full.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    need_gguf(str(file))
    header = Header.read(file)
    log.info("%s: %s, %s, is dequantised to bf16 once", file.name, ARCHITECTURES[header.architecture], header.kind)
    with _reading(file), _quiet():
        at = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**at)
        config = AutoConfig.from_pretrained(**at)
        if header.head_size:
            config.head_dim = header.head_size  # of Qwen3's, transformers knows the usual one alone
        if header.rope_factors:
            config.rope_parameters = _llama3_rope(file, config)
        model, report = AutoModelForCausalLM.from_pretrained(
            **at, config=config, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    if wrong := sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"]):
        raise EmorgError(f"{file} lacks {len(wrong)} of its model's tensors, such as {wrong[0]}", "get it again")
    with _full_disk(folder), _quiet():
        _save_tokenizer(file, tokenizer, folder)
        model.save_pretrained(folder)
    return {
        "source": file.name,
        "licence": header.licence or "as its source has it",
        "made": f"{'converted' if header.kind in PLAIN else 'dequantised'} from {header.kind} to bf16",
        "sha256": sha256(file),
        **{name: metadata.version(name) for name in ("gguf", "transformers")},
    }


def _save_tokenizer(file: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save it as one of no special class: loading Gemma's would put its own splitting in the place of the file's.

    Raises EmorgError where loading does so all the same, as with Qwen2's and the file's is another.
    """
    from transformers import AutoTokenizer

    # On a full disk this raises an OSError, but saving a bare Exception.
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    kept = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "TokenizersBackend"}
    settings.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    saved = AutoTokenizer.from_pretrained(str(folder))
    if saved.encode(_PROBE, add_special_tokens=False) != tokenizer.encode(_PROBE, add_special_tokens=False):
        raise EmorgError(f"{file}: its tokenizer is not its architecture's usual one", _SAFETENSORS)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself before its weights."""

    architecture: str
    kind: str
    """The type that most of its weights have, such as Q4_1."""
    licence: str | None
    head_size: int | None
    """The width of an attention head, where it says so."""
    rope_factors: bool
    """Whether it has Llama 3's factors of the rotary frequencies."""

    @classmethod
    def read(cls, file: Path) -> Header:
        """Raises EmorgError for what is no GGUF file, is cut short, or holds a model that we cannot convert."""
        from transformers.integrations.gguf import GgufHeader, read_gguf_metadata

        with _reading(file):
            facts, names = read_gguf_metadata(str(file))
            architecture = str(facts["general.architecture"])
            if architecture not in ARCHITECTURES:
                raise EmorgError(
                    f"{file} holds a model of the architecture {architecture!r}",
                    f"choose one of {', '.join(ARCHITECTURES.values())}",
                )
            header = GgufHeader.from_file(str(file))
            end = max(header.data_start + tensor.offset + tensor.nbytes for tensor in header.tensors)
            if (size := file.stat().st_size) < end:
                raise EmorgError(f"{file} is cut short: {size:,} of {end:,} bytes", "get it again")
            scaling = facts.get(f"{architecture}.rope.scaling.type", "none")
            if scaling != "none":
                raise EmorgError(
                    f"{file} scales its rotary positions ({scaling}), which transformers does not read from GGUF",
                    _SAFETENSORS,
                )
            sizes = Counter[int]()
            for tensor in header.tensors:
                sizes[tensor.ggml_type] += math.prod(tensor.shape)
        return cls(
            architecture=architecture,
            kind=_kind(sizes.most_common(1)[0][0]),
            licence=facts.get("general.license"),
            head_size=facts.get(f"{architecture}.attention.key_length"),
            rope_factors="rope_freqs.weight" in names,
        )


def _kind(ggml_type: int) -> str:
    from gguf import GGMLQuantizationType

    return str(GGMLQuantizationType(ggml_type).name)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what a damaged file makes its readers raise into an EmorgError."""
    import struct

    try:
        yield
    except (*_BROKEN, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EmorgError(f"{file} is no GGUF file that can be read ({reason})", "get it again, or another") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and notices: what matters of them is raised."""
    transformers = getLogger("transformers")
    level = transformers.level
    transformers.setLevel(ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.setLevel(level)


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Raise as OSError what safetensors raises in its own way if a file cannot be written."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if code := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from None
        raise


def _llama3_rope(file: Path, config: PretrainedConfig) -> dict[str, Any]:
    """Llama 3's rotary parameters, which llama.cpp keeps as the factors that they come to, and transformers ignores.

    Raises EmorgError for factors that are not Llama 3's.
    """
    import torch
    from gguf import GGUFReader
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    (tensor,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == "rope_freqs.weight")
    factors: torch.Tensor = torch.tensor(tensor.data)
    theta = config.rope_parameters["rope_theta"]
    parameters = {
        "rope_type": "llama3", "rope_theta": theta, "factor": round(float(factors.max()), 3), "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config.rope_parameters = parameters
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = theta ** -(torch.arange(0, 2 * len(frequencies), 2) / (2 * len(frequencies)))
    if factors.shape != frequencies.shape or not torch.allclose(plain / frequencies, factors, rtol=1e-3):
        raise EmorgError(f"{file} scales its rotary positions otherwise than Llama 3", _SAFETENSORS)
    return parameters
