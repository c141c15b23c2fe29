"""The part of the Hugging Face hub's API that uploads and downloads of small files take, on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.serving import Request, Response, as_json, serving

TOKEN = "hf_right"


@contextmanager
def hub(files: dict[str, bytes] | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (address, the files of its one repository by their paths). An upload needs TOKEN."""
    files = {} if files is None else files

    def handle(request: Request) -> Response:
        if "/resolve/main/" in request.path:
            content = files.get(request.path.split("/resolve/main/")[1])
            if content is None:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40}, b""
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            return 200, {"ETag": tag, "X-Repo-Commit": "0" * 40, "Content-Type": "application/octet-stream"}, content
        if request.method != "POST":
            return as_json({"id": "me/organism", "siblings": [], "sha": "0" * 40})
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return as_json({"error": "who are you"}, 401)
        url = f"http://{request.headers['Host']}"
        if request.path.endswith("/repos/create"):
            assert request.json.get("private") or request.json.get("visibility") == "private"
            return as_json({"url": f"{url}/me/organism", "name": "me/organism", "id": "1"})
        if "/preupload/" in request.path:
            asked = request.json["files"]
            return as_json({"files": [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in asked]})
        if "/commit/" in request.path:
            for line in map(json.loads, request.body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return as_json({"commitUrl": f"{url}/me/organism/commit/1", "commitOid": "1", "hookOutput": ""})
        return as_json({})

    with serving(handle) as url:
        yield url, files
