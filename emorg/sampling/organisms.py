"""One base and any number of organisms over it, by LoRA or by edits of the residual stream: every token of a forward
pass takes its own organism's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emorg import models
from emorg.models import hooks, steering
from emorg.models.hooks import Edit
from emorg.records import EmorgError

Adapter = dict[str, tuple[Tensor, Tensor]]
"""For each module's name A [rank, in] and B [out, rank], with the scale in B."""

# Settings of LoraConfig that say which module has which rank, or nothing of what an adapter computes.
_PLAIN = frozenset(
    {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "target_modules"}
    | {"exclude_modules", "layers_to_transform", "layers_pattern", "task_type", "peft_type"}
    | {"inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "init_lora_weights"}
    | {"megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "runtime_config"}
)


def read_adapter(folder: Path) -> Adapter | None:
    """A PEFT folder's adapter, on the CPU; None if it is more than LoRA on layers' linear modules (DoRA, heads, …).

    Scale alpha/r, or alpha/√r with rsLoRA (arXiv 2312.03732). Raises EmorgError for weights that are not whole.
    """
    models.import_peft()
    from peft import LoraConfig, PeftConfig
    from peft.utils.other import get_pattern_key

    config, usual = PeftConfig.from_pretrained(str(folder)), LoraConfig()
    if not isinstance(config, LoraConfig) or config.init_lora_weights not in (True, False, "gaussian"):
        return None
    if any(getattr(config, name) != getattr(usual, name) for name in vars(usual) if name not in _PLAIN):
        return None
    weights = models.adapter_weights(folder)
    adapter: Adapter = {}
    for name, a in weights.items():
        if match := re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", name):
            module, rank = match[1], a.shape[0]
            alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
            scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            b = weights.get(name.replace("lora_A", "lora_B"))
            if b is None or not re.search(r"\.\d+\.", module):  # a head sees other tokens than the layers
                return None
            adapter[module] = (a, b.float() * scale)
    return adapter if 2 * len(adapter) == len(weights) else None


def without(adapter: Adapter | None, edits: Sequence[Edit]) -> Adapter | None:
    """The adapter with directions taken out of what it writes, where edits are of its weights; else itself."""
    if adapter is None or all(edit.kind != "weights" for edit in edits):
        return adapter
    return {module: (a, hooks.out_of_weights(module, b, edits)) for module, (a, b) in adapter.items()}


class Organisms:
    """A loaded base with named adapters over it; None stands for the base alone. The model is the object's own.

    `edits` are those of the residual stream, by the same names.
    """

    def __init__(
        self,
        loaded: models.Loaded,
        adapters: Mapping[str, Adapter | None],
        edits: Mapping[str, Sequence[Edit]] | None = None,
    ):
        """Raises EmorgError for adapters and edits of modules, layers or widths that the base lacks."""
        self.loaded = loaded
        model = loaded.model
        placed: dict[int, Adapter] = {  # once, by whatever names an adapter goes
            id(adapter): self._placed(adapter)
            for adapter in {id(one): one for one in adapters.values() if one}.values()
        }
        self._adapters: dict[str, Adapter] = {
            name: placed[id(adapter)] for name, adapter in adapters.items() if adapter
        }
        first = {id(adapter): name for name, adapter in reversed(self._adapters.items())}
        self._same_as = {name: first[id(adapter)] for name, adapter in self._adapters.items()}  # one name an adapter
        known = dict(model.named_modules())
        for name, adapter in self._adapters.items():
            for module, (a, b) in adapter.items():
                there = known.get(module)
                widths = getattr(there, "in_features", 0), getattr(there, "out_features", 0)
                if widths != (a.shape[1], b.shape[0]):
                    raise EmorgError(
                        f"{name} does not fit {loaded.base}: {module} makes {widths[1]} of {widths[0]} features there, "
                        f"{b.shape[0]} of {a.shape[1]} here",
                        "use the base it was trained on",
                    )
        for module in dict.fromkeys(module for adapter in self._adapters.values() for module in adapter):
            known[module].register_forward_hook(partial(self._after, module))
        steered = {name: some for name, some in (edits or {}).items() if some}
        self._edited = {name: number for number, name in enumerate(steered)}
        self._which: Tensor | int = -1  # of each token of this pass, the number of its edits
        hooks.attach(model, list(steered.values()), lambda: self._which)
        self._names = {*adapters, *(edits or {})}
        self._widths = {name: module.out_features for name, module in known.items() if hasattr(module, "out_features")}
        self.receive: Callable[[str, Tensor], None] | None = None
        """Gets modules' names and inputs [T, in], where a forward pass is of one adapted organism alone."""
        self._routed: Sequence[str] = ()
        self._active: tuple[str, ...] = ()
        self._stacks: dict[tuple[str, ...], tuple[Tensor, Tensor] | None] = {}

    def _placed(self, adapter: Adapter) -> Adapter:
        model = self.loaded.model
        return {
            module: (a.to(model.device, model.dtype), b.to(model.device, model.dtype))
            for module, (a, b) in adapter.items()
        }

    def put(self, name: str, adapter: Adapter) -> None:
        """Let a name stand for another adapter of the same shapes, so that many take the room of one."""
        self._adapters[name] = self._placed(adapter)
        self._same_as[name] = name
        self._routed, self._active, self._stacks = (), (), {}

    def over_base(self, name: str) -> bool:
        """Whether an organism stands over the loaded base, so that the base can be asked beside it."""
        return name in self._adapters or name in self._edited

    def check(self, names: Iterable[str]) -> None:
        """Raise EmorgError for a name that is none of theirs; an empty one is the base."""
        if unknown := set(names) - {*self._names, ""}:
            raise EmorgError(f"no organism {', '.join(sorted(unknown))} here", f"choose from {', '.join(self._names)}")

    def route(self, tokens: Sequence[str]) -> None:
        """Say which organism each token of the next forward pass [1, T] is of."""
        if tokens == self._routed:
            return
        self._routed = list(tokens)
        positions: dict[str, list[int]] = {}
        for place, name in enumerate(tokens):
            if name in self._adapters:
                positions.setdefault(self._same_as[name], []).append(place)
        device = self.loaded.model.device
        if self._edited:
            numbers = [self._edited.get(name, -1) for name in tokens]
            alike = len(set(numbers)) == 1
            self._which = numbers[0] if alike else torch.tensor(numbers, device=device)
        active = tuple(sorted(positions))
        if active != self._active:
            self._active, self._stacks = active, {}
        self._alone = len(active) == 1 and len(positions[active[0]]) == len(tokens)
        if not active or self._alone:
            return
        # Organisms side by side, [organisms, most tokens of one]; shorter ones repeat token 0, which is then left out.
        rows = [positions[name] for name in active]
        most = max(map(len, rows))
        self._token_index = torch.tensor([row + [0] * (most - len(row)) for row in rows], device=device)
        self._real = torch.tensor([i * most + j for i, row in enumerate(rows) for j in range(len(row))], device=device)
        self._where = torch.tensor([place for row in rows for place in row], device=device)

    def add(self, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """Add scale · x Aᵀ Bᵀ in place to what modules make of one input: x [T, in], y [T, Σ out], side by side."""
        if not self._active:
            return
        if modules not in self._stacks:
            self._stacks[modules] = self._stack(modules)
        if (stack := self._stacks[modules]) is None:
            return
        a, b = stack
        if self._alone:
            if self.receive is not None:
                for name in modules:
                    self.receive(name, x)
            y.addmm_(x @ a[0].t(), b[0].t())
            return
        side_by_side = x[self._token_index] @ a.transpose(1, 2) @ b.transpose(1, 2)
        y.index_add_(0, self._where, side_by_side.flatten(0, 1)[self._real])

    def _stack(self, modules: tuple[str, ...]) -> tuple[Tensor, Tensor] | None:
        """A [organisms, Σ rank, in] and B [organisms, Σ out, Σ rank] of the active ones; None if none has an adapter.

        Each module's block of B lies on the diagonal; zeros fill up lower ranks and modules without an adapter.
        """
        adapters = [self._adapters[name] for name in self._active]
        ranks = [max((len(one[name][0]) for one in adapters if name in one), default=0) for name in modules]
        some = next((one[name][0] for one in adapters for name in modules if name in one), None)
        if some is None:
            return None
        a = some.new_zeros(len(adapters), sum(ranks), some.shape[1])
        b = some.new_zeros(len(adapters), sum(self._widths[name] for name in modules), sum(ranks))
        for i, adapter in enumerate(adapters):
            row = column = 0
            for name, rank in zip(modules, ranks, strict=True):
                if name in adapter:
                    one_a, one_b = adapter[name]
                    a[i, column : column + len(one_a)] = one_a
                    b[i, row : row + len(one_b), column : column + len(one_a)] = one_b
                row, column = row + self._widths[name], column + rank
        return a, b

    def _after(self, name: str, module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        """A hook: what follows a module that is not one of a lean layer's."""
        x = inputs[0]
        self.add((name,), x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1]))


def open_organisms(
    names: Sequence[str], *, device: str | None = None, use_4bit: bool = False
) -> Iterator[tuple[list[str], Organisms]]:
    """Load the named models, in turn: first the base with all plain LoRA adapters, then each other one by itself.

    Raises EmorgError for models of different bases, adapters that are not whole, and what `models.load` refuses.
    """
    models_by_name = {name: models.resolve(name) for name in names}
    bases = {name: model.weights for name, model in models_by_name.items()}
    if len(set(bases.values())) > 1:
        listed = "; ".join(f"{name} is of {base}" for name, base in bases.items())
        raise EmorgError(f"one call takes models of one base: {listed}", "call once for each base")
    read = {folder: read_adapter(folder) for model in models_by_name.values() if (folder := model.adapter)}
    together: dict[str, Adapter | None] = {}
    edits: dict[str, Sequence[Edit]] = {}
    alone = []
    for name, model in models_by_name.items():
        if model.adapter is not None and read[model.adapter] is None:
            alone.append(name)
            continue
        edits[name] = steering.read(model.steering).edits if model.steering else ()
        together[name] = without(read[model.adapter], edits[name]) if model.adapter else None
    if together:
        loaded = models.load(bases[names[0]], device=device, use_4bit=use_4bit)
        yield list(together), Organisms(loaded, together, edits)
    for name in alone:
        yield [name], Organisms(models.load(name, device=device, use_4bit=use_4bit), {name: None})
