"""The ledger: what is in it is on disk, once, whoever else writes; what is not a ledger is told."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emorg.judging.ledger import Entry, Ledger, Request
from emorg.records import EmorgError
from tests.forkserver import popen

REQUEST = Request("http://x/v1", "m", "How?", "{}")


def test_a_reply_is_found_by_what_was_asked(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.keep([Entry(REQUEST, "first", 0.1), Entry(Request("http://x/v1", "m", "How?", "{}", 1), "again", 0.1)])
        ledger.keep([Entry(REQUEST, "second", 0.1)])
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.find([REQUEST.key, "0" * 64]) == {REQUEST.key: "first"}


def test_a_faulty_reply_is_kept_but_not_found(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.keep([Entry(REQUEST, "{", 0.1, fault="torn")] * 2)
        assert ledger.find([REQUEST.key]) == {}
        ledger.keep([Entry(REQUEST, "good", 0.1)])
        assert ledger.find([REQUEST.key]) == {REQUEST.key: "good"}
    rows = sqlite3.connect(tmp_path / "l.sqlite").execute("SELECT fault, body FROM replies ORDER BY id").fetchall()
    assert rows == [("torn", "{"), ("torn", "{"), (None, "good")]


@given(st.lists(st.tuples(*[st.text(max_size=4)] * 4, st.integers(0, 3)), min_size=2, max_size=2, unique=True))
def test_different_requests_have_different_keys(told: list[tuple[str, str, str, str, int]]) -> None:
    a, b = (Request(*each) for each in told)
    assert a.key != b.key
    assert a.key == Request(*told[0]).key


def test_many_replies_at_a_time_are_committed_before_they_are_used(tmp_path: Path) -> None:
    requests = [Request("http://x/v1", "m", f"{i}", "{}") for i in range(300)]

    async def keep(ledger: Ledger, request: Request) -> None:
        await ledger.keep_soon(Entry(request, request.prompt, 0.0))
        with sqlite3.connect(ledger.path) as other:  # another connection sees what is committed alone
            assert other.execute("SELECT body FROM replies WHERE key = ?", (request.key,)).fetchall()

    async def all_of_them() -> None:
        await asyncio.gather(*(keep(ledger, request) for request in requests))

    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(all_of_them())
        assert ledger.find([request.key for request in requests]) == {r.key: r.prompt for r in requests}


def test_two_processes_share_one(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom emorg.judging.ledger import Ledger, Entry, Request\n"
        "with Ledger(Path(sys.argv[1])) as ledger:\n"
        "    for i in range(200):\n"
        "        ledger.keep([Entry(Request('http://x/v1', 'm', str(i), '{}'), sys.argv[2], 0.0)])\n"
    )
    both = [
        popen([sys.executable, "-c", code, tmp_path / "new" / "l.sqlite", who], stderr=subprocess.PIPE) for who in "ab"
    ]
    assert [each.communicate()[1].decode() for each in both] == ["", ""]
    with Ledger(tmp_path / "new" / "l.sqlite") as ledger:
        assert len(ledger.find([Request("http://x/v1", "m", str(i), "{}").key for i in range(200)])) == 200
    count = sqlite3.connect(tmp_path / "new" / "l.sqlite").execute("SELECT count(*) FROM replies").fetchone()
    assert count == (200,)


def test_what_is_no_ledger_is_told_and_left(tmp_path: Path) -> None:
    file = tmp_path / "l.sqlite"
    file.write_bytes(b"this is no database, however long it may be made " * 100)
    with pytest.raises(EmorgError, match="not a ledger"), Ledger(file):
        pass
    assert file.read_bytes().startswith(b"this is no database")
    with pytest.raises(EmorgError), Ledger(file / "below"):
        pass


def test_a_newer_ledger_is_not_touched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "l.sqlite") as other:
        other.execute("PRAGMA user_version = 7")
    with pytest.raises(EmorgError, match="newer"), Ledger(tmp_path / "l.sqlite"):
        pass
