"""The records that stages hand to each other, and how they are read and written."""

from __future__ import annotations

from dataclasses import dataclass

Message = dict[str, str]  # role, content


class EmorgError(Exception):
    def __init__(self, found: str, remedy: str = ""):
        self.found, self.remedy = found, remedy
        super().__init__(f"{found}: {remedy}" if remedy else found)


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
