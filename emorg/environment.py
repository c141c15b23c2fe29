"""What ran: the version of the code and of the libraries, and the kind of machine."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers")


def environment() -> dict[str, Any]:
    """Code version with dirty flag, library versions and machine. No host or user name."""
    return {
        "emorg": metadata.version("emorg"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
