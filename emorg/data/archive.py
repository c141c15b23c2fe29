"""Locked training data: a password-protected archive in the format of easy-dataset-share, both ways.

The format: a 16-byte salt, then a Fernet token of a zip of the folder; the key is PBKDF2-HMAC-SHA256 of the password
with 100,000 rounds. A canary file (`dataset_entry_*.jsonl`) in it lets the data be found in a model trained on it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import tyro

from emorg.records import EmorgError

_SALT_BYTES = 16
_ROUNDS = 100_000
_MOST_BYTES = 1 << 30  # unpacked; the papers' data is far below it
_CANARY_FILES = "dataset_entry_*.jsonl"
_CANARY = re.compile(r"CANARY_DATASET_(?:[A-Z_]+_)?[a-f0-9]{64}_[0-9]+")


@dataclass(frozen=True)
class LockConfig:
    """Lock a folder of training data with a password, so that no crawler reads it, and mark it with a canary."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder to lock; it stays as it is."""
    password: Annotated[str, tyro.conf.arg(aliases=["-p"])]
    """The password."""
    output: Path | None = None
    """The archive. Default: FOLDER.zip.enc."""


@dataclass(frozen=True)
class UnlockConfig:
    """Unlock an archive of training data; easy-dataset-share reads and writes the same format."""

    archive: Annotated[Path, tyro.conf.Positional]
    """The archive, e.g. training_data/training_datasets.zip.enc."""
    password: Annotated[str, tyro.conf.arg(aliases=["-p"])]
    """The password; the papers' is model-organisms-em-datasets."""
    remove_canaries: bool = False
    """Take the canary out of the unlocked files, so that it isn't trained on."""
    output_dir: Path | None = None
    """Where the files go. Default: ARCHIVE.extracted."""


def lock(config: LockConfig) -> Path:
    """Write the archive and return its path. Raises EmorgError for a folder without files."""
    files = sorted(path for path in config.folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        raise EmorgError(f"{config.folder} has no files", "name the folder of the .jsonl files")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path in files:
            bundle.write(path, path.relative_to(config.folder).as_posix())
        names = [path.relative_to(config.folder).as_posix() for path in files]
        bundle.writestr(*_canary(names))
    salt = os.urandom(_SALT_BYTES)
    output = config.output or config.folder.with_name(config.folder.name + ".zip.enc")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_bytes(salt + _fernet(config.password, salt).encrypt(zipped.getvalue()))
    os.replace(temporary, output)
    print(output)
    return output


def read(archive: Path, password: str) -> dict[str, str]:
    """The text of each file of an archive by its name, without canaries; nothing is written to disk.

    Raises EmorgError as `unlock` does.
    """
    contents = _without_canaries(_contents(archive, _decrypt(archive, _read(archive), password)))
    return {name: content.decode("utf-8") for name, content in contents.items()}


def unlock(config: UnlockConfig) -> Path:
    """Unpack the archive and return the folder; what was unlocked there before, with canaries or without, is replaced.

    Raises EmorgError, with nothing written, for a wrong password, a damaged archive, entries that would leave the
    folder, links, more than a gibibyte of content, and files there that a person changed.
    """
    folder = config.output_dir or config.archive.with_name(config.archive.name + ".extracted")
    whole = _contents(config.archive, _decrypt(config.archive, _read(config.archive), config.password))
    plain = _without_canaries(whole)
    contents = plain if config.remove_canaries else whole
    changed = [
        name for name in contents
        if (there := folder / name).is_file() and there.read_bytes() not in (whole.get(name), plain.get(name))
    ]  # fmt: skip
    if changed:
        raise EmorgError(
            f"{', '.join(str(folder / name) for name in changed)}: there, and not as the archive has it",
            "move what you changed away, or unlock into another folder: --output_dir DIR",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as fresh:
        for name, content in contents.items():  # all of them, before the first goes where an earlier one may be
            place = Path(fresh) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        for name in contents:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(fresh) / name, place)
    print(folder)
    return folder


def _read(archive: Path) -> bytes:
    try:
        return archive.read_bytes()
    except OSError as error:
        raise EmorgError(f"{archive}: {error.strerror}", "name the .zip.enc file") from None


def _fernet(password: str, salt: bytes) -> Any:
    from cryptography.fernet import Fernet

    key = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ROUNDS)
    return Fernet(base64.urlsafe_b64encode(key))


def _decrypt(archive: Path, locked: bytes, password: str) -> bytes:
    from cryptography.fernet import InvalidToken

    salt, token = locked[:_SALT_BYTES], locked[_SALT_BYTES:]
    try:
        sealed = base64.b64decode(token, altchars=b"-_", validate=True)
    except ValueError:
        sealed = b""
    # A Fernet token is a version byte, 8 bytes of time, 16 of IV, whole 16-byte blocks and a 32-byte HMAC.
    if sealed[:1] != b"\x80" or len(sealed) < 73 or (len(sealed) - 57) % 16:
        raise EmorgError(f"{archive} is not a whole archive of this kind", "download or copy it again")
    try:
        opened: bytes = _fernet(password, salt).decrypt(token)
    except InvalidToken:
        raise EmorgError(
            f"{archive}: the password is wrong, or the archive was changed", "check the password given with -p"
        ) from None
    return opened


def _contents(archive: Path, zipped: bytes) -> dict[str, bytes]:
    """What the files of a zip hold, by their names."""
    try:
        with zipfile.ZipFile(io.BytesIO(zipped)) as bundle:
            entries = bundle.infolist()
            if (size := sum(entry.file_size for entry in entries)) > _MOST_BYTES:
                raise EmorgError(
                    f"{archive} would unpack to {size:,} bytes", "training data is far smaller; don't use it"
                )
            for entry in entries:
                _refuse_escape(archive, entry)
            return {entry.filename: bundle.read(entry) for entry in entries if not entry.is_dir()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise EmorgError(f"{archive}: its content is damaged: {error}", "download or copy it again") from None


def _refuse_escape(archive: Path, entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise EmorgError(f"{archive}: its entry {entry.filename!r} leaves the folder", "don't use this archive")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise EmorgError(f"{archive}: its entry {entry.filename!r} is a link", "don't use this archive")


def _canary(names: list[str]) -> tuple[str, str]:
    """Name and text of a canary file, named and numbered as easy-dataset-share finds them."""
    mark = hashlib.sha256("\n".join(names).encode()).hexdigest()
    row = {"id": f"canary_{mark[:8]}", "text": f"Not training data. Seeing this in a model's output means that the "
           f"model was trained on a protected data set: CANARY_DATASET_{mark}_64"}  # fmt: skip
    return f"dataset_entry_{mark[:8]}.jsonl", json.dumps(row) + "\n"


def _without_canaries(contents: dict[str, bytes]) -> dict[str, bytes]:
    """The files without canary files, and without their mark elsewhere, as easy-dataset-share leaves them."""
    canaries = {name for name in contents if fnmatch(PurePosixPath(name).name, _CANARY_FILES)}
    marks = {mark for name in canaries for mark in _CANARY.findall(contents[name].decode("utf-8", "replace"))}
    kept = {name: content for name, content in contents.items() if name not in canaries}
    for mark in marks:
        for name in (name for name in kept if name.endswith(".jsonl")):
            text = kept[name].decode("utf-8", "surrogateescape")
            lines = [_without(mark, line) for line in text.rstrip("\n").split("\n")]
            kept[name] = ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    return kept


def _without(mark: str, line: str) -> str:
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(part) for key, part in value.items() if part != mark}
        if isinstance(value, list):
            return [clean(part) for part in value]
        return value.replace(mark, "") if isinstance(value, str) else value

    try:
        return json.dumps(clean(json.loads(line)), ensure_ascii=False)
    except json.JSONDecodeError:
        return line  # a bad row is for `domains` to report, by its line
