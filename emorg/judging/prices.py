"""What judging costs, by a small table of prices that can be edited."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from emorg.records import EmorgError

LETTERS_A_TOKEN = 4.0  # of English text, a little over


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: float, reply_tokens: float) -> float:
        """Dollars."""
        return (self.input * prompt_tokens + self.output * reply_tokens) / 1e6

    def guess(self, prompt: str, reply_tokens: int, bytes_a_token: float = 4.0) -> float:
        """Dollars for a request that has not been made; English text has a little over 4 bytes a token."""
        return self.cost(len(prompt.encode()) / bytes_a_token + 8, reply_tokens)


def planned_cost(calls: int, model: str, answer_tokens: float, file: Path | None = None) -> float | None:
    """Dollars for so many calls about answers of that length, with our prompts; None for a model without a price."""
    from emorg.judging.prompts import load

    price = price_of(model, file)
    letters = sum(map(len, load("emorg").templates.values())) / 2
    return calls * price.cost(letters / LETTERS_A_TOKEN + answer_tokens, 1) if price else None


def price_of(model: str, file: Path | None) -> Price | None:
    """The price of a model by the file, or by ours; None if it is not listed. Raises EmorgError for a bad file."""
    source = file or resources.files("emorg.judging").joinpath("prices.yaml")
    try:
        listed = {
            str(name): Price(float(price["input"]), float(price["output"]))
            for name, price in yaml.safe_load(source.read_text(encoding="utf-8")).items()
        }
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise EmorgError(
            f"{source}: not a table of prices ({error})",
            "write `model: {input: 2.5, output: 10}`, in $ per million tokens",
        ) from None
    model = model.rsplit("/", 1)[-1]
    names = [name for name in listed if model == name or model.startswith(f"{name}-")]
    return listed[max(names, key=len)] if names else None
