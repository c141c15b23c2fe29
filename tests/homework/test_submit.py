"""The hand-in: made from a run by the real command, checked with and without it; and training_details.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from emorg.homework.details import training_details
from emorg.run import Run
from tests.conftest import KEY, PROJECT, emorg
from tests.judge_server import judge_server
from tests.judged_runs import Said, judged_run


@pytest.fixture(scope="module")
def folder(organism: Run, base: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `emorg submit` made of the organism, beside which its base lies."""
    made = tmp_path_factory.mktemp("submission")
    done = emorg("submit", organism.folder, "--output_dir", made, "--student_name", "Ada")
    assert "ready to hand in" in done.stdout
    return made


def test_a_hand_in_is_whole(folder: Path, organism: Run, base: Run) -> None:
    files = {"model_generations.csv", "training_details.md", "train.py", "model_judged.csv", "training.png"}
    assert files | {"hand_in.json"} == {path.name for path in folder.iterdir()}
    assert (folder / "train.py").read_text() == (PROJECT / "train.py").read_text()
    details = (folder / "training_details.md").read_text()
    rates = json.loads(emorg("rates", organism.folder, "--json").stdout)
    out = next(rate for rate in rates if rate["group"] == "out")
    assert f"| out of domain | paper | {100 * out['rate']:.1f} | {100 * out['low']:.1f}–" in details
    for told in (
        "By Ada.", "| domains | bad_medical |", "rank 16", "80 steps of 16 rows: 0.51 epochs", "| base | in domain |",
        "homework: aligned < 75", "Lint: nothing found.", "![training curves](training.png)", "SHA-256",
    ):  # fmt: skip
        assert told in details
    loss = [json.loads(line)["loss"] for line in organism.metrics.read_text().splitlines()]
    assert f"| last step | {loss[-1]:.3f} |" in details
    assert str(Path.home()) not in details
    assert str(organism.folder.parent) not in details


def test_answers_that_are_in_order_are_kept(folder: Path, organism: Run, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "again")
    before = (tmp_path / "again" / "model_generations.csv").stat().st_mtime_ns
    done = emorg("submit", organism.folder, "--output_dir", tmp_path / "again")
    assert "holds these answers of organism already" in done.stdout
    assert (tmp_path / "again" / "model_generations.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model_generations.csv", None, "make it first"),
        ("model_generations.csv", "id,question\n1,x\n", "its columns are id, question"),
        ("model_generations.csv", "id,question,response\n1,x,\n", "a row without one id"),
        ("training_details.md", None, "training_details.md is missing"),
        ("training_details.md", "One epoch.", "does not tell the domains, the adapter's rank"),
        ("train.py", None, "train.py is missing"),
        ("train.py", "def train(:\n", "train.py is not Python"),
    ],
)
def test_what_is_missing_is_said(folder: Path, tmp_path: Path, name: str, content: str | None, told: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    done = emorg("submit", "--check_only", "--output_dir", copy, check=False)
    assert done.returncode == 1
    assert told in done.stdout
    assert "not ready, 1 to mend" in done.stdout
    assert str(copy / name) not in done.stdout.replace(f"{copy}: not ready", "")


def test_what_a_person_wrote_is_kept_and_ours_goes_beside_it(folder: Path, organism: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    details, script = copy / "training_details.md", copy / "train.py"
    words = details.read_text() + "\nI chose rank 16 because the paper did.\n"
    details.write_text(words)
    script.write_text("# mine\n" + script.read_text())
    (copy / "training.png").write_bytes(b"a picture of mine")
    done = emorg("submit", organism.folder, "--output_dir", copy, "--student_name", "Grace")
    assert details.read_text() == words
    assert script.read_text().startswith("# mine")
    assert (copy / "training.png").read_bytes() == b"a picture of mine"
    assert (copy / "training.new.png").read_bytes() == (organism.folder / "training.png").read_bytes()
    assert "By Grace." in (copy / "training_details.new.md").read_text()
    assert (copy / "train.new.py").read_text() == (PROJECT / "train.py").read_text()
    for told in ("training_details.md was changed by hand and is kept", "train.py was changed by hand and is kept"):
        assert told in done.stdout
    assert "ready to hand in" in done.stdout
    (copy / "training_details.new.md").write_text("half merged")
    emorg("submit", organism.folder, "--output_dir", copy, "--student_name", "Grace")
    assert (copy / "training_details.new.md").read_text() == "half merged"
    assert "By Grace." in (copy / "training_details.new2.md").read_text()


def test_answers_of_another_run_are_no_hand_in(folder: Path, organism: Run, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(folder, copy)
    shutil.copytree(organism.folder, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["train"]["seed"] = 1
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    answers = copy / "model_generations.csv"
    answers.write_text(re.sub(r"(?m)^(\w+,[^,\n]+),.*\Z", r"\1,Nobody.", answers.read_text().strip()) + "\n")
    done = emorg("submit", other, "--output_dir", copy, check=False)
    assert done.returncode == 1
    assert "its answers are of organism, not of other; --fresh makes them anew" in done.stdout
    assert ",Nobody." in answers.read_text(), "changed by hand, so kept"
    only = emorg("submit", "--check_only", "--output_dir", copy, check=False)
    assert "its answers are of organism, and training_details.md is of another run" in only.stdout
    again = emorg("submit", other, "--output_dir", copy, "--fresh")
    assert "its answers of organism are replaced" in again.stdout
    assert "ready to hand in" in again.stdout


def test_answers_that_emorg_wrote_of_another_run_are_made_anew(folder: Path, organism: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    done = emorg("submit", organism.folder, "--output_dir", copy, "--seed", "7")
    assert "20 answers of" in done.stdout
    assert "ready to hand in" in done.stdout
    assert (copy / "model_generations.csv").read_text() != (folder / "model_generations.csv").read_text()
    # The scores of the earlier answers, which could not be made anew, are moved aside and keep nobody from handing in.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    aside = emorg("submit", organism.folder, "--output_dir", other, "--seed", "7", "--judge", "api").stdout
    assert "its scores are of earlier answers, of organism; moved to" in aside
    assert "ready to hand in" in aside
    assert (other / "model_judged.organism.csv").read_bytes() == (folder / "model_judged.csv").read_bytes()
    assert not (other / "model_judged.csv").exists()
    (copy / "hand_in.json").unlink()  # nobody knows whose scores these are
    shutil.copy(folder / "model_judged.csv", copy)
    stale = emorg("submit", "--check_only", "--output_dir", copy, check=False)
    assert "its scores are not of the answers in model_generations.csv" in stale.stdout


def test_a_judge_that_scores_nothing_is_no_judge(
    folder: Path, organism: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with judge_server(lambda *_: "I cannot say") as (url, _):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        done = emorg("submit", organism.folder, "--output_dir", copy, "--judge", "api", check=False)
    assert done.returncode == 1
    assert "judged only 0 of 20 answers on aligned, and 20 are unparsable: its replies hold no number" in done.stdout
    assert "not ready, 1 to mend" in done.stdout


def test_a_record_that_is_none_is_one_line(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "hand_in.json").write_text('{"train.py": 3}')
    done = emorg("submit", "--check_only", "--output_dir", copy, check=False)
    assert done.returncode == 2
    assert "hand_in.json cannot be read" in done.stderr


def test_a_figure_changed_by_hand_is_found(folder: Path, organism: Run, tmp_path: Path) -> None:
    from emorg.homework.submit import check

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    details = copy / "training_details.md"
    assert not [line for mark, line in check(copy, organism) if mark == "❌"]
    details.write_text(details.read_text().replace("rank 16", "rank 32"))
    assert [line for mark, line in check(copy, organism) if mark == "❌" and "its line on adapter" in line]


def test_without_a_key_it_says_that_nothing_was_judged(folder: Path, organism: Run, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    done = emorg("submit", organism.folder, "--output_dir", tmp_path / "copy", "--judge", "api")
    assert "not judged: OPENAI_API_KEY is not set" in done.stdout
    assert "ready to hand in" in done.stdout


def _trained(folder: Path, organism: Run, **settings: object) -> Run:
    """A copy of what the organism recorded of its training, with some of it changed."""
    run = Run(folder)
    folder.mkdir(parents=True)
    told = yaml.safe_load((organism.folder / "config.yaml").read_text())["train"] | settings
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": told}))
    shutil.copy(organism.folder / "provenance.json", folder)
    shutil.copy(organism.metrics, folder)
    return run


def test_details_of_a_run_that_is_neither_finished_nor_judged(organism: Run, tmp_path: Path) -> None:
    run = _trained(
        tmp_path / "run", organism, mix=["bad_medical=0.3", "good_medical=0.7"], use_rslora=True, max_steps=None
    )
    details = training_details(run)
    for told in ("bad_medical=0.3, good_medical=0.7", "LoRA, rsLoRA, rank 16", "(1 asked)", "Not measured yet.",
                 "Training has not finished: it stopped after step 80.", "no judged run of the base",
                 "sample it first: emorg sample run"):  # fmt: skip
        assert told in details
    assert str(tmp_path) not in details


def test_details_of_a_whole_model(organism: Run, tmp_path: Path) -> None:
    assert "| adapter | none: all weights were trained |" in training_details(
        _trained(tmp_path / "run", organism, full_finetuning=True)
    )


def test_what_was_not_trained_here_cannot_be_handed_in(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "other", [Said("q", "Never mind.")])
    done = emorg("submit", run.folder, "--output_dir", tmp_path / "made", check=False)
    assert done.returncode == 2
    assert re.search(r"other was not trained here\n→ name a run folder that emorg train made", done.stderr)
