"""Text that came from elsewhere: what no file or server takes of it becomes question marks; and how it is quoted."""

from __future__ import annotations

import json
from typing import Any


def utf8(text: str) -> str:
    """Text as UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def excerpt(text: str, length: int = 80) -> str:
    """The text in quotes, as a message quotes it: a long one's beginning, with its length."""
    return repr(text) if len(text) <= length else f"{text[:length]!r}… ({len(text):,} characters)"


def parse(text: str) -> Any:
    """The object that a JSON text holds. Raises ValueError if it is none, or nested too deep."""
    try:
        value = json.loads(text)
        return json.loads(utf8(json.dumps(value, ensure_ascii=False))) if "\\ud" in text.lower() else value
    except RecursionError:
        raise ValueError("nested too deep") from None
