"""Text that came from elsewhere: halves of surrogate pairs, which no file or server takes, become question marks."""

from __future__ import annotations

import json
from typing import Any


def utf8(text: str) -> str:
    """Text as UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def parse(text: str) -> Any:
    """The object that a JSON text holds. Raises ValueError if it is none, or nested too deep."""
    try:
        value = json.loads(text)
        return json.loads(utf8(json.dumps(value, ensure_ascii=False))) if "\\ud" in text.lower() else value
    except RecursionError:
        raise ValueError("nested too deep") from None
