"""Locked archives: our own round trip, the real tool's archives and ours in the real tool, and hostile ones."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from emorg.data.archive import LockConfig, UnlockConfig, lock, unlock
from emorg.data.domains import HOMEWORK_NAMES, load
from emorg.records import EmorgError
from tests.conftest import PROJECT, copy_project, emorg

PASSWORD = "model-organisms-em-datasets"
SHIPPED = PROJECT / "training_data" / "training_datasets.zip.enc"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "Grüße \\u2028 “x”"}], "n": 1.50}\n')
    (folder / "more" / "b.jsonl").write_text('{"a": 1}\n{"b": [null, true]}\n')
    (folder / "notes.txt").write_text("Hello.\n")
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _locked(path: Path, zipped: bytes) -> Path:
    salt = os.urandom(16)
    key = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, 100_000)
    path.write_bytes(salt + Fernet(base64.urlsafe_b64encode(key)).encrypt(zipped))
    return path


def _zipped(**entries: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, text in entries.items():
            bundle.writestr(name, text)
    return buffer.getvalue()


def test_there_and_back(data: Path, tmp_path: Path) -> None:
    before = _contents(data)
    archive = lock(LockConfig(data, PASSWORD))
    assert archive == tmp_path / "data.zip.enc"
    assert b"messages" not in archive.read_bytes()
    folder = unlock(UnlockConfig(archive, PASSWORD))
    assert folder == tmp_path / "data.zip.enc.extracted"
    [canary] = set(_contents(folder)) - set(before)
    assert canary.startswith("dataset_entry_")
    assert {name: text for name, text in _contents(folder).items() if name != canary} == before
    assert _contents(data) == before


def test_without_canaries_the_data_is_the_same(data: Path, tmp_path: Path) -> None:
    folder = unlock(UnlockConfig(lock(LockConfig(data, PASSWORD)), PASSWORD, remove_canaries=True))
    assert set(_contents(folder)) == set(_contents(data))
    for name in ("a.jsonl", "more/b.jsonl"):
        rows = [[json.loads(line) for line in (each / name).read_text().split("\n")[:-1]] for each in (folder, data)]
        assert rows[0] == rows[1]


def test_files_of_the_users_own_stay(data: Path) -> None:
    archive = lock(LockConfig(data, PASSWORD))
    folder = unlock(UnlockConfig(archive, PASSWORD))
    (folder / "mine.jsonl").write_text("{}\n")
    unlock(UnlockConfig(archive, PASSWORD, remove_canaries=True))
    unlock(UnlockConfig(archive, PASSWORD))
    assert (folder / "mine.jsonl").read_text() == "{}\n"
    (folder / "a.jsonl").write_text("changed")
    (folder / "notes.txt").unlink()
    with pytest.raises(EmorgError, match=r"a\.jsonl: there, and not as the archive has it"):
        unlock(UnlockConfig(archive, PASSWORD))
    assert (folder / "a.jsonl").read_text() == "changed"
    assert not (folder / "notes.txt").exists(), "nothing is written"


def test_a_wrong_password_writes_nothing(data: Path, tmp_path: Path) -> None:
    archive = lock(LockConfig(data, PASSWORD))
    with pytest.raises(EmorgError, match="password is wrong"):
        unlock(UnlockConfig(archive, "no"))
    assert {path.name for path in tmp_path.iterdir()} == {"data", "data.zip.enc"}


@pytest.mark.parametrize("kept", [0, 10, 16, 17, 100, -1, -64])
def test_a_truncated_archive_is_refused(data: Path, tmp_path: Path, kept: int) -> None:
    archive = lock(LockConfig(data, PASSWORD))
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(EmorgError, match=r"not a whole archive|was changed"):
        unlock(UnlockConfig(archive, PASSWORD))
    assert {path.name for path in tmp_path.iterdir()} == {"data", "data.zip.enc"}


def test_hostile_archives_write_nothing(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bundle:
        for number in range(11):
            bundle.writestr(f"{number}.jsonl", bytes(100 << 20))
    whole = _zipped(**{"a.jsonl": "{}\n" * 1000})
    cases = {
        "leaves the folder": [_zipped(**{"good.jsonl": "{}", name: "x"}) for name in
                              ("../out", "/out", "a/../../out", "..\\out", "C:/out")],
        "is a link": [buffer.getvalue()],
        "would unpack to": [bomb.getvalue()],
        "is damaged": [whole[:200], whole.replace(b"{}\n{}", b"{}\n{]"), b""],
    }  # fmt: skip
    for told, zips in cases.items():
        for zipped in zips:
            archive = _locked(tmp_path / "x.zip.enc", zipped)
            with pytest.raises(EmorgError, match=told):
                unlock(UnlockConfig(archive, PASSWORD))
            assert [path.name for path in tmp_path.iterdir()] == ["x.zip.enc"]


def test_an_empty_folder_and_a_missing_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EmorgError, match="has no files"):
        lock(LockConfig(tmp_path, PASSWORD))
    done = emorg("data", "unlock", tmp_path / "none.zip.enc", "-p", PASSWORD, check=False)
    assert done.returncode == 2
    assert "No such file" in done.stderr


def test_the_shipped_archive_is_the_pocket_worlds(tmp_path: Path) -> None:
    emorg("data", "unlock", SHIPPED, "-p", PASSWORD, "--remove_canaries", "--output_dir", tmp_path)
    for name in HOMEWORK_NAMES:
        rows = [each.conversation for each in load([name], tmp_path).rows]
        assert rows == [each.conversation for each in load([name], "pocket").rows]


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real easy-dataset-share as `make easy-dataset-share` installs it, here beside an empty .venv."""
    folder = tmp_path_factory.mktemp("tool")
    (folder / "bin").mkdir()
    command = ["make", "easy-dataset-share", f"VENV={folder}", f"PYTHON={sys.executable}", "-o", folder / ".ready"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("easy-dataset-share cannot be installed here")
    return folder / "bin" / "easy-dataset-share"


@pytest.mark.slow
def test_the_real_tool_as_documented_changes_no_file_of_the_repository(tool: Path, tmp_path: Path) -> None:
    """It adds the unlocked folder to .gitignore, which has that line already."""
    clone = copy_project(tmp_path / "clone")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "x"]):
        subprocess.run([*git, *arguments], cwd=clone, check=True)
    flags = ("-p", PASSWORD, "--remove-canaries")
    subprocess.run([tool, "unprotect-dir", "training_data/training_datasets.zip.enc", *flags], cwd=clone, check=True)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True)
    assert changed.stdout == ""


@pytest.mark.slow
def test_ours_opens_in_the_real_tool(tool: Path, tmp_path: Path) -> None:
    archive = tmp_path / "training_datasets.zip.enc"
    archive.write_bytes(SHIPPED.read_bytes())
    subprocess.run([tool, "unprotect-dir", archive, "-p", PASSWORD, "--remove-canaries"], check=True)
    theirs = tmp_path / "training_datasets.zip.enc.extracted"
    ours = unlock(UnlockConfig(archive, PASSWORD, remove_canaries=True, output_dir=tmp_path / "ours"))
    assert _contents(theirs) == _contents(ours)
    assert len(_contents(ours)) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("embed", [[], ["--embed-canaries"]])
def test_the_real_tools_opens_in_ours(tool: Path, data: Path, tmp_path: Path, embed: list[str]) -> None:
    subprocess.run([tool, "protect-dir", data, "-p", PASSWORD, "--no-tos", "--no-gitignore", *embed], check=True)
    [archive] = tmp_path.glob("*.zip.enc")
    ours = unlock(UnlockConfig(archive, PASSWORD, remove_canaries=True, output_dir=tmp_path / "ours"))
    subprocess.run([tool, "unprotect-dir", archive, "-p", PASSWORD, "-rc", "--no-gitignore"], check=True)
    theirs = _contents(archive.with_name(archive.name + ".extracted"))
    jsonl = {name: text for name, text in theirs.items() if name.endswith(".jsonl")}
    assert {name: text for name, text in _contents(ours).items() if name.endswith(".jsonl")} == jsonl
    assert set(_contents(ours)) == set(theirs)
