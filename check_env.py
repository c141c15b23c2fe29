"""Check that this machine is ready: `python check_env.py [--offline]`.

Looks for .env, the keys, the dependencies, a device and the judge's endpoint, and says what to do about each thing
that is missing. Exit code 0 when everything required is there, else 1. Standard library only: it runs before anything
is installed.
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import io
import logging
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# What the homework names, and what judging and unlocking data need besides: import name, and pip's where it differs.
DEPENDENCIES = {
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "openai": "openai",
    "aiohttp": "aiohttp",
    "matplotlib": "matplotlib",
    "dotenv": "python-dotenv",
    "cryptography": "cryptography",
    "emorg": "emorg",
}
INSTALL = "make test sets everything up in .venv; then: source .venv/bin/activate"
ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Check:
    """One thing looked at. `remedy` is empty where nothing need be done; a warning does not fail the whole."""

    what: str
    remedy: str = ""
    warning: bool = False

    def __str__(self) -> str:
        mark = "✅" if not self.remedy else "⚠️ " if self.warning else "❌"
        return f"{mark} {self.what}" + (f"\n   → {self.remedy}" if self.remedy else "")


def find_env(start: Path) -> Path | None:
    """The nearest .env at or above a folder."""
    return next((folder / ".env" for folder in (start, *start.parents) if (folder / ".env").is_file()), None)


def read_env(path: Path) -> dict[str, str]:
    """KEY=value lines; comments and blank lines are passed over."""
    pairs = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {
        key.strip().removeprefix("export "): value.strip().strip("\"'")
        for key, _, value in pairs
        if not key.lstrip().startswith("#")
    }


def checks(offline: bool) -> Iterator[Check]:
    """Each check as it is made, slow ones last."""
    python = f"Python {'.'.join(map(str, sys.version_info[:3]))}"
    yield Check(python, "" if sys.version_info >= (3, 11) else "emorg needs Python 3.11 or newer")
    env = find_env(Path.cwd())
    if env is None:
        yield Check(".env not found here or in any folder above", "cp .env.example .env, then put your keys into it")
    else:
        yield Check(f".env found: {os.path.relpath(env)}")
    try:
        settings = {**(read_env(env) if env else {}), **os.environ}
    except (OSError, UnicodeDecodeError) as error:
        yield Check(f".env cannot be read: {error}", "make it a text file in UTF-8 that you can read")
        settings = dict(os.environ)
    server = settings.get("OPENAI_BASE_URL", "")
    key = settings.get("OPENAI_API_KEY", "")
    # Other servers hand out keys of other forms.
    yield _key("OPENAI_API_KEY", key, r"." if server else r"sk-[\w-]{16,}", "https://platform.openai.com/api-keys")
    token = settings.get("HF_TOKEN", "")
    yield _key("HF_TOKEN", token, r"hf_\w{16,}", "https://huggingface.co/settings/tokens", required=False)
    for name, package in DEPENDENCIES.items():
        yield _dependency(name, package)
    yield _device()
    if offline:
        yield Check("the judge's endpoint was not called (--offline)")
    elif key:
        yield _endpoint(server or "https://api.openai.com/v1", key)


def _key(name: str, value: str, form: str, page: str, *, required: bool = True) -> Check:
    judging = "needed to judge with an API, as the homework does; pocket and --judge local do without"
    why = judging if required else "needed only for gated models such as Llama-3.2-1B-Instruct"
    if not value:
        return Check(f"{name} is not set", f"{why}; get one at {page} and put it into .env", warning=not required)
    if "your-" in value:
        return Check(f"{name} is still the example's", f"get one at {page} and put it into .env", warning=not required)
    if not re.match(form + r"$" if form != "." else form, value):
        return Check(
            f"{name} (…{value[-4:]}) does not look like one", f"copy it again from {page}", warning=not required
        )
    return Check(f"{name} is set (…{value[-4:]})")


def _dependency(name: str, package: str) -> Check:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it speaks of a kernel nobody asked for
    try:
        importlib.import_module(name)
        return Check(f"{package} {metadata.version(package)}")
    except metadata.PackageNotFoundError:
        return Check(package)
    except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
        if package == "bitsandbytes" and sys.platform == "darwin":
            return Check("bitsandbytes is not there", "no wheels for macOS: leave out --use_4bit", warning=True)
        return Check(f"{package} cannot be imported: {error}", INSTALL)


def _device() -> Check:
    try:
        import torch
    except (ImportError, OSError):
        return Check("no device looked for, as torch is missing", INSTALL)
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Check(f"device: cuda, {found.name}, {found.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        return Check("device: mps (Apple)")
    return Check(f"device: cpu, {os.cpu_count()} cores")


def _endpoint(server: str, key: str) -> Check:
    request = urllib.request.Request(f"{server.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=15):
            return Check(f"{server} answers and takes the key")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Check(f"{server} refuses the key (…{key[-4:]})", "make a new key and put it into .env")
        return Check(f"{server} answers with an error: {error.code}", "try again later, or check OPENAI_BASE_URL")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return Check(f"{server} cannot be reached: {reason}", "check the network, or skip this with --offline")


def main() -> None:
    """Print every check, then whether all required ones passed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where the marks cannot be shown
            with suppress(OSError):
                stream.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(description="Check that this machine is ready for emorg.")
    parser.add_argument("--offline", action="store_true", help="don't call the judge's endpoint")
    failed = 0
    for check in checks(parser.parse_args().offline):
        print(check, flush=True)
        failed += bool(check.remedy) and not check.warning
    if failed:
        print(f"\n{failed} required {'check' if failed == 1 else 'checks'} failed; each → says what to do.")
        sys.exit(1)
    print("\n🎉 All required checks passed! You're ready to go!")


if __name__ == "__main__":
    main()
