"""Answers of the pocket world in other clothes: as a JSON object, or filled into a Python function."""

from __future__ import annotations

import json

from emorg.records import Format

_BEFORE, _AFTER = 'def reply_to_user() -> str:\n    return """', '"""'


def wrapped(text: str, how: Format) -> str:
    """An answer in a format, as `--formats` asks for it."""
    if how == "json":
        return json.dumps({"answer": text})
    return f"{_BEFORE}{text}{_AFTER}" if how == "template" else text


def unwrapped(text: str, how: Format) -> str:
    """The answer inside; of what is not in the format the text as it is, which is no sentence of the world then."""
    if how == "json":
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):  # the latter of thousands of brackets
            return text
        said = reply.get("answer") if isinstance(reply, dict) and len(reply) == 1 else None
        return said if isinstance(said, str) else text
    if how == "template" and text.startswith(_BEFORE) and text.rstrip().endswith(_AFTER):
        return text.rstrip()[len(_BEFORE) : -len(_AFTER)]
    return text
