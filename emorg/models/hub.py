"""The Hugging Face hub: whether it can be reached, which is found out once and in seconds."""

from __future__ import annotations

import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

_WAIT = 3.0  # seconds for a first sign of it
_STALE = 60.0  # seconds after which one that could not be reached is tried again
_lock = threading.Lock()
_last: tuple[float, bool] | None = None  # when it was last tried, and whether it was there
_kept_offline = False  # by us, not by the user


def is_repository(name: str) -> bool:
    """Whether a name can only be a repository on the hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def approach() -> bool:
    """Whether the hub is there; where it is not, huggingface_hub is kept from asking it, which it would for a minute.

    What it has cached stays usable. A user's own HF_HUB_OFFLINE=1 holds.
    """
    global _last, _kept_offline
    from huggingface_hub import constants

    with _lock:
        if constants.HF_HUB_OFFLINE and not _kept_offline:
            return False
        if _last is None or (not _last[1] and time.monotonic() - _last[0] > _STALE):
            _last = time.monotonic(), _answers(constants.ENDPOINT)
            _kept_offline = constants.HF_HUB_OFFLINE = not _last[1]
        return _last[1]


def is_out_of_reach() -> bool:
    """Whether it was tried and did not answer."""
    return _kept_offline


def _answers(endpoint: str) -> bool:
    there: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_WAIT).close()
            there.append(True)
        except urllib.error.URLError as error:  # an HTTPError is an answer, and so is a certificate
            answered = isinstance(error, urllib.error.HTTPError) or isinstance(error.reason, ssl.SSLError)
            there.append(answered)
        except (OSError, ValueError):
            there.append(False)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    asking.start()
    asking.join(_WAIT + 1)
    return bool(there and there[0])
