"""Ctrl-C during imports, where libraries would swallow it or die of it with a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, PROJECT

TRAIN = ["--config", "pocket", "--max_steps", "1", "--output_dir"]


@pytest.mark.parametrize("module", ["yaml", "numpy", "torch.autograd", "transformers.modeling_utils"])
def test_during_imports_it_ends_in_one_line(module: str, tmp_path: Path) -> None:
    """Stopped as soon as Python says that it has imported the module, so while another is being imported."""
    command = [sys.executable, "-X", "importtime", str(PROJECT / "train.py"), *TRAIN, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.rpartition("|")[2].strip() == module:
            process.send_signal(signal.SIGINT)
            break
    else:
        pytest.fail(f"{module} was never imported: {said[-3:]}")
    said += process.stderr.readlines()
    process.stderr.close()
    assert process.wait(PATIENCE) == 130, said[-5:]
    assert not any("Traceback" in line or "Exception ignored" in line for line in said)
    own = [line for line in said if line.strip() and not line.startswith("import time:")]
    assert own == ["train.py: interrupted; run the same command again to go on from here\n"]
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_process_that_was_started_deaf_to_it_stays_so(tmp_path: Path) -> None:
    code = (
        "import signal; from emorg.interrupt import listen; listen('x'); import os; os.kill(os.getpid(), signal.SIGINT)"
    )
    deaf = f"import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); {code}; print('alive')"
    done = subprocess.run([sys.executable, "-c", deaf], cwd=PROJECT, capture_output=True, text=True, env=os.environ)
    assert done.stdout == "alive\n", done.stderr
