"""Where the finished runs of a sweep on several machines are kept: a folder that all of them see, or an fsspec URL."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from emorg.records import EmorgError, write_atomic

_PART = ".part"  # of a folder that is being written
_OWNER = "grid.json"  # which grid's runs these are


class Storage(Protocol):
    """Runs by their names. What is there is whole: a worker or a driver may be killed at any moment."""

    def names(self) -> set[str]:
        """The runs that are there."""

    def put(self, run: Path, files: Iterable[Path]) -> None:
        """Keep a run, or of one that is there the files that changed."""

    def get(self, name: str, into: Path) -> None:
        """Fetch a run into a folder, over what is there."""

    def owner(self) -> str:
        """What `own` noted last; empty before."""

    def own(self, text: str) -> None:
        """Note whose runs these are."""


def open_storage(url: str) -> Storage:
    """A folder's storage, or that of a URL such as s3://bucket/folder. Raises EmorgError for one that cannot be had."""
    return _Bucket(url) if "://" in url else _Folder(Path(url))


class _Folder:
    def __init__(self, root: Path):
        self.root = root

    def names(self) -> set[str]:
        return {path.parent.name for path in self.root.glob("*/config.yaml") if not path.parent.name.endswith(_PART)}

    def put(self, run: Path, files: Iterable[Path]) -> None:
        _copy(run, self.root / run.name, files)

    def get(self, name: str, into: Path) -> None:
        source = self.root / name
        if source.resolve() != into.resolve():
            _copy(source, into, (path for path in source.rglob("*") if path.is_file()))

    def owner(self) -> str:
        owner = self.root / _OWNER
        return owner.read_text(encoding="utf-8") if owner.exists() else ""

    def own(self, text: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / _OWNER, text)


def _copy(run: Path, into: Path, files: Iterable[Path]) -> None:
    """Copy files of a run to the same places in another folder, each whole; a new folder appears whole."""
    target = into if into.exists() else into.with_name(into.name + _PART)
    for path in files:
        if path.name == ".lock":
            continue
        there = target / path.relative_to(run)
        there.parent.mkdir(parents=True, exist_ok=True)
        part = there.with_name(there.name + _PART)
        shutil.copy2(path, part)
        os.replace(part, there)
    if target != into:
        os.replace(target, into)


class _Bucket:
    """A run's files as objects; a marker beside them says that the run is whole."""

    def __init__(self, url: str):
        fsspec: Any = import_module("fsspec.core")
        try:
            local = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}
            self._files, self._root = fsspec.url_to_fs(url, **local)
        except (ImportError, ValueError) as error:
            raise EmorgError(f"{url}: {error}", "install what fsspec needs for it, e.g. pip install s3fs") from None

    def names(self) -> set[str]:
        self._files.invalidate_cache()
        return {str(path).rpartition("/")[2] for path in self._files.glob(f"{self._root}/.whole/*")}

    def put(self, run: Path, files: Iterable[Path]) -> None:
        for path in files:
            if path.name != ".lock":
                self._files.put_file(str(path), f"{self._root}/{run.name}/{path.relative_to(run).as_posix()}")
        self._files.pipe_file(f"{self._root}/.whole/{run.name}", b"")

    def get(self, name: str, into: Path) -> None:
        self._files.invalidate_cache()
        whole = f"{self._root}/{name}"
        part = into.with_name(into.name + _PART)
        shutil.rmtree(part, ignore_errors=True)
        if into.exists():
            shutil.copytree(into, part)
        for path in self._files.find(whole):
            there = part / str(path).removeprefix(whole).lstrip("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(path, str(there))
        shutil.rmtree(into, ignore_errors=True)
        os.replace(part, into)

    def owner(self) -> str:
        self._files.invalidate_cache()
        there = self._files.exists(f"{self._root}/{_OWNER}")
        return str(self._files.cat_file(f"{self._root}/{_OWNER}").decode()) if there else ""

    def own(self, text: str) -> None:
        self._files.pipe_file(f"{self._root}/{_OWNER}", text.encode())
