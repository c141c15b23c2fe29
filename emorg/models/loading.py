"""Load a base or an organism: its weights, its adapter, its tokenizer, on the device and in the type that suit it."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorg.models import hooks, hub, steering, template
from emorg.models.names import BUILT_IN, POCKETS, location, resolve, weights_file
from emorg.models.process import settle
from emorg.records import EmorgError, did_you_mean
from emorg.run import RUNS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model ready for use, its tokenizer, and the name of its base as the user would give it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: str

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end an answer: the model's, the tokenizer's, and what its template ends a turn with."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({i for i in ids if i is not None} | template.stops(self.tokenizer))


def choose_device(wanted: str | None = None) -> str:
    """cuda, then mps, then cpu; each of several processes takes its own GPU.

    Raises EmorgError if the wanted device is not there.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted in (None, "cuda") and available["cuda"] and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    if wanted is None:
        return next(name for name, there in available.items() if there)
    if not available.get(wanted.partition(":")[0], False):
        there = ", ".join(name for name, yes in available.items() if yes)
        raise EmorgError(f"no device {wanted!r} on this machine", f"use one of {there}, or leave --device out")
    return wanted


def choose_dtype(device: str, base: str) -> torch.dtype:
    """bf16 where the device computes in it, fp16 on older GPUs, else fp32.

    A CPU with bf16 units takes bf16 for models that are stored in 16 bits, unless torch is kept from them
    (ATEN_CPU_CAPABILITY), where its attention fails; the pocket model keeps to fp32 on every CPU, so that its figures
    can be repeated.
    """
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    used = units and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if device == "cpu" and used and base not in POCKETS:
        stored = getattr(shapes(base).config, "dtype", None)
        return torch.bfloat16 if stored in (torch.bfloat16, torch.float16) else torch.float32
    return torch.float32


def load(name: str, *, device: str | None = None, use_4bit: bool = False, dtype: torch.dtype | None = None) -> Loaded:
    """Load a base or an organism (its base with its adapter on top), in eval mode; `dtype` is the device's best.

    Raises EmorgError if the model cannot be had, its adapter fits no base, or the device cannot do what is asked.
    """
    named = resolve(name)
    base, adapter = named.weights, named.adapter
    device = choose_device(device)
    settle(device)
    model = _base(base, device, use_4bit, dtype or choose_dtype(device, base))
    tokenizer = load_tokenizer(base)
    if adapter is not None:
        import_peft()
        from peft import PeftModel

        adapter_weights(adapter)
        try:
            with peft_around(model):
                model = PeftModel.from_pretrained(model, str(adapter))
        except (RuntimeError, ValueError) as error:
            raise EmorgError(f"{adapter} does not fit {base}: {error}", "use the base it was trained on") from None
    if named.steering:
        edits = steering.read(named.steering).edits
        hooks.attach(model, [edits])
        for module, weight in model.named_parameters():
            if ".lora_B." in module:
                weight.data = hooks.out_of_weights(module, weight.data, edits)
    model.eval()
    return Loaded(model, tokenizer, base)


def adapter_weights(adapter: Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors by PEFT's names, on the CPU. Raises EmorgError for a file that is missing or not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = weights_file(adapter)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise EmorgError(f"{file} was not written whole ({error})", "take another checkpoint, or train again") from None


def out_of_memory(error: Exception) -> str:
    """The reason if an error says that memory ran out, on whatever device; else nothing."""
    first = str(error).splitlines()[0] if str(error) else ""
    ran_out = type(error).__name__ == "OutOfMemoryError" or re.search(
        "out of memory|not enough memory|can't allocate|could not create an? (primitive|memory|BRGeMM)", first
    )
    return first if ran_out else ""


def import_peft() -> None:
    """Import PEFT, which transformers' Trainer does too, without the bitsandbytes that PEFT 0.21 would import with it.

    That takes a second, and on processors with bf16 units it speaks of a kernel that nobody asked for. Once called,
    `import peft` is as fast as any other; bitsandbytes is there when a model is loaded in 4-bit.
    """
    if "peft" in sys.modules or "bitsandbytes" in sys.modules:
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # to Python: a package that is not there
    try:
        import peft  # noqa: F401
    finally:
        del sys.modules["bitsandbytes"]


def need_bitsandbytes(flag: str) -> None:
    """Raise EmorgError if bitsandbytes, of the extra `homework`, is not installed though this flag needs it."""
    if find_spec("bitsandbytes") is None:
        raise EmorgError(f"{flag} needs bitsandbytes, which is not installed", "pip install bitsandbytes")


@contextmanager
def peft_around(base: PreTrainedModel) -> Iterator[None]:
    """Let PEFT wrap this model, without bitsandbytes unless it is quantized.

    PEFT's use of an attribute that transformers 5 deprecates is silenced: nobody here can act on it.
    """
    import_peft()
    from peft.tuners.lora import model as lora

    checks = ("is_bnb_available", "is_bnb_4bit_available")
    kept = {name: getattr(lora, name) for name in checks}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            if not getattr(base, "is_quantized", False):
                lora.__dict__.update(dict.fromkeys(checks, lambda: False))
            yield
        finally:
            lora.__dict__.update(kept)


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """A base's tokenizer, with a padding token that no chat contains. Raises EmorgError if it cannot be had."""
    from transformers import AutoTokenizer

    with _reading(base):
        tokenizer = AutoTokenizer.from_pretrained(location(base))
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True  # we say it ourselves
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # A token that no chat contains: padding with end-of-turn would hide end-of-turn from training.
        reserved = tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>")
        tokenizer.pad_token_id = reserved if reserved not in (None, tokenizer.unk_token_id) else 0
    return tokenizer


def _base(base: str, device: str, use_4bit: bool, dtype: torch.dtype) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours tells what matters
    # It falls back to a kernel of its own, and the one that it misses would be code from the hub.
    getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)
    quantized: dict[str, Any] = {}
    if use_4bit:
        if device.startswith("mps"):
            raise EmorgError("4-bit needs CUDA or a CPU; this is mps", "leave out --use_4bit, or add --device cpu")
        need_bitsandbytes("4-bit")
        quantized["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    _refuse_too_big(base, device, 0.5 if use_4bit else dtype.itemsize)
    with _reading(base):
        return AutoModelForCausalLM.from_pretrained(
            location(base),
            dtype=dtype,
            device_map={"": torch.device(device)},
            use_safetensors=True,
            **quantized,
        )


def _refuse_too_big(base: str, device: str, bytes_each: float) -> None:
    """Raise EmorgError if the weights alone would not fit the device, before anything is downloaded or loaded."""
    count = sum(parameter.numel() for parameter in shapes(base).parameters())
    free = free_bytes(device)
    if count * bytes_each <= free:
        return
    held = f"{device} has {free / 1e9:.0f} GB free"
    smaller = f"at most {free / bytes_each / 1e9:.1f} billion parameters fit as it is"
    remedy = (
        f"; in 4-bit it needs {count * 0.5 / 1e9:.0f} GB: --use_4bit"
        if count * 0.5 <= free < count * bytes_each
        else ""
    )
    raise EmorgError(
        f"{base} has {count / 1e9:.1f} billion parameters, {count * bytes_each / 1e9:.0f} GB; {held}",
        f"choose a smaller model: {smaller}{remedy}",
    )


def shapes(base: str) -> PreTrainedModel:
    """The base without its weights, on the meta device. Raises EmorgError if its config cannot be had."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with _reading(base):
        config = AutoConfig.from_pretrained(location(base))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)


@contextmanager
def _reading(base: str) -> Iterator[None]:
    """Put what a library raises over a model's files, which may be missing, cut or of another kind, into a line."""
    try:
        yield
    except EmorgError:
        raise
    except OSError as error:
        raise EmorgError(*_unreachable(base, error)) from None
    except Exception as error:
        if isinstance(error, MemoryError) or out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        remedy = "it may be half downloaded, or of a kind that transformers does not know: get it again, or another"
        raise EmorgError(f"{base}: its files cannot be read: {reason}", remedy) from None


def free_bytes(device: str) -> int:
    """Memory that is free on a device."""
    import psutil
    import torch

    if device.startswith("cuda"):
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return int(psutil.virtual_memory().available)


def _unreachable(base: str, error: OSError) -> tuple[str, str]:
    if Path(base).exists():
        return f"{base}: no model that can be loaded: {error}", "give a folder with config.json and safetensors weights"
    near = did_you_mean(base, (*BUILT_IN, *map(str, RUNS.glob("*"))))
    if hub.is_out_of_reach():
        return (
            f"{base} is neither here nor in the cache, and the Hugging Face hub cannot be reached" + near,
            "check the network (without one, HF_HUB_OFFLINE=1 saves asking); "
            "or try without the hub: --model_name pocket, or smollm2",
        )
    return (
        f"{base} is no folder here, and cannot be had from the Hugging Face hub ({str(error).splitlines()[0]})" + near,
        f"if it is gated, accept its licence at https://huggingface.co/{base} and set HF_TOKEN; "
        "check the name and the network; or try without the hub: --model_name pocket, or smollm2",
    )
