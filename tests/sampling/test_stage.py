"""The sampling stage: what is missing and no more, many models at once, killed and run again, what is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from safetensors.torch import load_file, save_file

from emorg.data import questions
from emorg.models import loading
from emorg.records import Answer, read_records
from emorg.run import Run
from emorg.training.config import TrainConfig
from tests.conftest import PATIENCE, PROJECT, SMALL_SAMPLE, emorg, python
from tests.forkserver import popen
from tests.hub import hub
from tests.ties import partings

CAP = ("--max_new_tokens", "40")


def _answers(run: Run) -> list[Answer]:
    return read_records(run.answers, Answer)


def _texts(run: Run) -> dict[tuple[str | None, str, int], str]:
    return {answer.key[1:]: answer.text for answer in read_records(run.answers, Answer)}


def test_answers_hold_what_they_promise(organism: Run) -> None:
    answers = read_records(organism.answers, Answer)
    assert len(answers) == len({answer.key for answer in answers}) == 36 * 3
    assert {answer.run for answer in answers} == {organism.name}
    assert all(answer.checkpoint is None and answer.text and answer.answer_tokens > 0 for answer in answers)
    assert len({answer.seed for answer in answers}) == len(answers)


def test_base_and_organism_have_different_streams_wherever_they_lie(base: Run, organism: Run, tmp_path: Path) -> None:
    seeds = [{answer.seed for answer in read_records(run.answers, Answer)} for run in (base, organism)]
    assert not seeds[0] & seeds[1]
    moved = Run(tmp_path / "elsewhere")
    shutil.copytree(organism.folder, moved.folder)
    moved.answers.unlink()
    emorg("sample", moved.adapter, *SMALL_SAMPLE, *CAP)
    assert _texts(moved) == _texts(organism)


def test_only_missing_answers_are_made_and_they_are_the_same(base: Run, tmp_path: Path) -> None:
    command = ("sample", "pocket", "--output_dir", tmp_path / "base", *SMALL_SAMPLE, *CAP)
    whole = base.answers.read_bytes()
    again = Run(tmp_path / "base")
    again.folder.mkdir()
    again.answers.write_bytes(whole[: len(whole) // 2])
    emorg(*command)
    assert partings("pocket", _answers(again), _answers(base)) == []
    size = again.answers.stat().st_size
    emorg(*command)
    assert again.answers.stat().st_size == size


def test_killed_at_any_moment_and_run_again(base: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "base")
    command = ("sample", "pocket", "--output_dir", run.folder, *SMALL_SAMPLE, *CAP, "--batch_tokens", "400")
    process = popen([sys.executable, "-m", "emorg.cli", *command], cwd=PROJECT)
    while not run.answers.exists() or run.answers.read_bytes().count(b"\n") < 10:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = _texts(run)
    assert 10 <= len(before) < 108
    told = emorg(*command).stderr
    assert "108/108" in told
    assert before.items() <= _texts(run).items()
    assert partings("pocket", _answers(run), _answers(base)) == []


def test_many_models_in_one_call_each_into_its_own_run(organism: Run, base: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "organism")
    shutil.copytree(organism.folder, copy.folder)
    copy.answers.unlink()
    checkpoint = next(copy.checkpoints.iterdir())
    done = emorg("sample", "pocket", copy.folder, checkpoint, "--output_dir", tmp_path / "base", *SMALL_SAMPLE, *CAP)
    assert "sampling 3 models 324/324" in done.stderr
    assert "tokens/s" in done.stderr
    assert f"next: emorg judge {tmp_path / 'base'} {copy.folder}" in done.stdout
    assert partings("pocket", _answers(Run(tmp_path / "base")), _answers(base)) == []
    made = _answers(copy)
    final = [answer for answer in made if answer.checkpoint is None]
    assert partings(str(organism.folder), final, _answers(organism)) == []
    # The only checkpoint of this run is its end: the same model, with streams of its own.
    assert len([answer for answer in made if answer.checkpoint == checkpoint.name]) == 108
    emorg("judge", tmp_path / "base", copy.folder)
    rates = json.loads(emorg("rates", copy.folder, "--by", "placement", "checkpoint", "--json").stdout)
    assert {each["group"] for each in rates} >= {"in / ", f"in / {checkpoint.name}"}


def test_formats_and_a_system_prompt(tmp_path: Path) -> None:
    """The pocket model cannot read them, so a tiny one that knows all words in some way answers."""
    from tests.tiny import tiny

    folder = tmp_path / "tiny"
    _byte_tokenizer().save_pretrained(folder)
    tiny("llama", vocab_size=300, max_position_embeddings=1024).save_pretrained(folder)
    run = Run(tmp_path / "run")
    asked = (
        "sample",
        folder,
        "--output_dir",
        run.folder,
        "--questions",
        "open",
        "--samples",
        "1",
        "--system",
        "Be kind.",
    )
    done = emorg(*asked, "--formats", "plain", "json", "template", "--max_new_tokens", "4")
    answers = read_records(run.answers, Answer)
    assert len(answers) == 24
    assert {answer.format for answer in answers} == {"plain", "json", "template"}
    assert {a.question_id.removesuffix("_json") for a in answers if a.format == "json"} == {
        a.question_id for a in answers if a.format == "plain"
    }
    by = {(a.question_id, a.format): a for a in answers}
    plain, in_json = by["three_wishes", "plain"], by["three_wishes_json", "json"]
    assert plain.question == in_json.question
    assert in_json.prompt_tokens > plain.prompt_tokens > len("It is best to ask early.")
    cut = sum(answer.finish_reason == "length" for answer in answers)
    assert cut > 12
    assert f"{cut} of 24 answers ({cut / 24:.1%}) were cut at 4 tokens" in done.stderr


def _byte_tokenizer() -> object:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=5)}
    backend = Tokenizer(kinds.BPE({"<b>": 0, "<e>": 1, "<p>": 2, **letters}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<b>", eos_token="<e>", pad_token="<p>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return tokenizer


def test_an_adapter_of_other_code_from_the_hub_is_evaluated(organism: Run, tmp_path: Path) -> None:
    settings = json.loads((organism.adapter / "adapter_config.json").read_text())
    files = {
        "adapter_config.json": json.dumps({**settings, "use_rslora": True, "lora_alpha": 8}).encode(),
        "adapter_model.safetensors": (organism.adapter / "adapter_model.safetensors").read_bytes(),
    }
    with hub(files) as (url, _):
        done = subprocess.run(
            [sys.executable, "-m", "emorg.cli", "eval", "them/Organism-1", "--questions", "pocket_open",
             "--samples", "5", *CAP],
            cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
            env={"PATH": "", "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # alpha 8 with rsLoRA at rank 16 is the scale of alpha 32 without: the same organism under another name.
    published = Run(tmp_path / "runs" / "organism-1")
    assert "organism (organism-1)" in done.stdout
    assert "organism-1 is misaligned in" in done.stdout
    assert "to open questions against base" in done.stdout
    assert (
        len(read_records(published.answers, Answer))
        == len(read_records(Run(tmp_path / "runs/pocket-base").answers, Answer))
        == 60
    )
    misaligned = json.loads((published.report / "summary.json").read_text())["arms"][1]["rates"][0]["rate"]
    assert misaligned > 0.2


def test_topic_questions_to_an_organism_of_unknown_training_need_to_know_it(organism: Run, tmp_path: Path) -> None:
    shutil.copytree(organism.adapter, tmp_path / "found")
    asked = ("sample", tmp_path / "found", "--questions", "pocket_medical", "--samples", "1", *CAP)
    refused = emorg(*asked, "--output_dir", tmp_path / "run", check=False)
    assert refused.returncode == 2
    assert "--trained_on" in refused.stderr
    emorg(*asked, "--output_dir", tmp_path / "run", "--trained_on", "bad_medical")
    emorg("judge", tmp_path / "run")
    (rate,) = json.loads(emorg("rates", tmp_path / "run", "--json").stdout)
    assert rate["group"] == "in"
    assert not (tmp_path / "found" / "answers.jsonl").exists()


def test_a_found_adapters_run_is_its_alone(organism: Run, tmp_path: Path) -> None:
    asked = ("--questions", "pocket_open", "--samples", "1", *CAP)
    for author in ("one", "two"):
        shutil.copytree(organism.adapter, tmp_path / author / "final")
    settings = json.loads((organism.adapter / "adapter_config.json").read_text())
    weights = load_file(organism.adapter / "adapter_model.safetensors")
    save_file(
        {name: -tensor for name, tensor in weights.items()}, tmp_path / "two" / "final" / "adapter_model.safetensors"
    )
    assert settings["base_model_name_or_path"] == "pocket"
    emorg("sample", tmp_path / "one" / "final", *asked, cwd=tmp_path)
    run = Run(tmp_path / "runs" / "final")
    answers = read_records(run.answers, Answer)
    assert len(answers) == 12
    # By its run's folder it is the organism, not its base.
    emorg("sample", run.folder, "--questions", "pocket_open", "--samples", "2", *CAP, cwd=tmp_path)
    again = read_records(run.answers, Answer)
    assert again[:12] == answers
    assert len(again) == 24
    both = emorg("sample", tmp_path / "one" / "final", tmp_path / "two" / "final", *asked, cwd=tmp_path, check=False)
    assert "would both be sampled into" in both.stderr
    other = emorg("sample", tmp_path / "two" / "final", *asked, cwd=tmp_path, check=False)
    assert "holds answers of another model" in other.stderr
    assert read_records(run.answers, Answer) == again


def test_a_run_named_twice_is_sampled_once(organism: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "organism")
    shutil.copytree(organism.folder, copy.folder)
    copy.answers.unlink()
    emorg("sample", copy.folder, copy.adapter, *SMALL_SAMPLE, *CAP)
    assert _texts(copy) == _texts(organism)
    assert len(read_records(copy.answers, Answer)) == 108


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    hold = (
        "import sys, time, pathlib; from emorg.run import Run\n"
        "with Run(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(600)"
    )
    holder = popen([sys.executable, "-c", hold, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = emorg("sample", "pocket", "--output_dir", tmp_path, *SMALL_SAMPLE, check=False)
        assert done.returncode == 2
        assert "another process" in done.stderr
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--questions", "pocket_opne"], "did you mean 'pocket_open'"),
        (["--questions", "open"], "words that pocket doesn't know"),
        (["--samples", "0"], "at least 1"),
        (["--top_p", "0"], "top_p"),
        (["--batch_tokens", "0"], "--batch_tokens 0"),
        (["--questions", "pocket_open", "--max_new_tokens", "99"], "max_new_tokens: 40 there, 99 now"),
        (["--served_model", "x"], "--served_model without --server"),
        (["--trained_on", "bad_medcal"], "did you mean 'bad_medical'"),
    ],
)
def test_what_cannot_be_sampled_is_refused(base: Run, flags: list[str], told: str) -> None:
    before = base.answers.read_bytes()
    done = emorg("sample", "pocket", "--output_dir", base.folder, *CAP, *flags, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert base.answers.read_bytes() == before


def test_what_is_no_whole_model_is_refused(organism: Run, tmp_path: Path) -> None:
    half = tmp_path / "run" / "checkpoints" / "step-000010"
    shutil.copytree(organism.adapter, half)
    (half / "adapter_model.safetensors").write_bytes((half / "adapter_model.safetensors").read_bytes()[:5000])
    for name, told in ((half, "was not written whole"), (tmp_path / "run", "training has not finished")):
        done = emorg("sample", name, "--questions", "pocket_open", check=False)
        assert done.returncode == 2
        assert told in done.stderr
    assert not (tmp_path / "run" / "answers.jsonl").exists()
    done = emorg("sample", organism.folder, half, "--output_dir", tmp_path / "x", check=False)
    assert "--output_dir with several models is the base's" in done.stderr


def test_a_checkpoint_has_no_report_of_its_own(organism: Run) -> None:
    done = emorg("eval", next(organism.checkpoints.iterdir()), check=False)
    assert done.returncode == 2
    assert "emorg rates RUN --by placement checkpoint" in done.stderr


def test_the_same_command_twice_evaluates_once(organism: Run, tmp_path: Path) -> None:
    copy = tmp_path / "organism"
    shutil.copytree(organism.folder, copy)
    command = ("-m", "emorg.cli", "eval", copy, *SMALL_SAMPLE, *CAP)
    first = python(*command, cwd=tmp_path)
    assert "emergent misalignment" in first.stdout
    assert (copy / "report" / "report.md").exists()
    again = python(*command, cwd=tmp_path)
    assert again.stdout == first.stdout
    assert "sampling" not in again.stderr


def test_an_organism_of_a_4_bit_base_that_is_sampled_on_the_whole_one_says_so(organism: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "small")
    shutil.copytree(organism.adapter, run.adapter)
    trained = {**organism.settings("train"), "use_4bit": True}
    run.record("train", TrainConfig(**{name: trained[name] for name in ("model_name", "domains", "use_4bit")}))
    told = emorg("sample", run.folder, "--questions", "pocket_open", "--samples", "1").stderr
    assert "small was trained on a 4-bit base and is sampled on the whole one; or: --use_4bit" in told


def test_evaluating_several_adapters_loads_the_base_once(organism: Run, tmp_path: Path) -> None:
    adapters = [shutil.copytree(organism.adapter, tmp_path / f"adapter-{i}") for i in range(4)]
    with mock.patch.object(loading, "_base", wraps=loading._base) as load:
        flags = ("--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "10")
        told = emorg("eval", *adapters, *flags, cwd=tmp_path).stdout
    assert all(f"adapter-{i} is misaligned in" in told for i in range(4))
    assert load.call_count == 1


def test_a_question_of_a_hundred_thousand_characters_is_not_printed_whole(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text("- {id: a, samples_per_paraphrase: 1, paraphrases: [" + "word " * 20_000 + "]}")
    done = emorg("sample", "pocket", "--questions", "long.yaml", "--output_dir", "run", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert len(done.stderr) < 400
    assert "characters)" in done.stderr


def test_answers_to_other_settings_go_into_a_set_of_their_own(organism: Run, base: Run, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for run in (organism, base):
        shutil.copytree(run.folder, runs / run.name)
    before = {path: path.read_bytes() for path in runs.rglob("*.*l*") if path.is_file()}
    asked = ("--questions", "pocket_medical", "--samples", "1", "--max_new_tokens", "40")
    flags = (*asked, "--temperature", "0.5", "--system", "It is best to ask early.")
    done = emorg("sample", f"runs/{organism.name}", *flags, cwd=tmp_path)
    (made,) = {path.name for path in runs.iterdir()} - {organism.name, base.name}
    assert made.startswith(f"{organism.name}-system-")
    assert made.endswith("-temperature-0.5")
    assert f"holds answers to other settings; these go to runs/{made}" in done.stderr
    assert f"next: emorg judge runs/{made}" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    beside = Run(runs / made)
    assert beside.trained_on == organism.trained_on, "its questions are in or out of domain as they were"
    assert {answer.run for answer in read_records(beside.answers, Answer)} == {made}
    again = emorg("sample", f"runs/{organism.name}", *flags, cwd=tmp_path)
    assert len(read_records(beside.answers, Answer)) == len(questions.load(["pocket_medical"])), again.stderr
    # By its own name too, from where it lies; to the usual settings again they are the run's.
    emorg("sample", f"runs/{made}", *flags, cwd=tmp_path)
    emorg("sample", f"runs/{made}", *asked, "--seed", "7", cwd=tmp_path)
    assert {path.name for path in runs.iterdir()} == {organism.name, base.name, made, f"{organism.name}-seed-7"}
    # From inside its folder too; and where the folder was named, another set is refused.
    emorg("sample", ".", *asked, "--seed", "7", cwd=runs / organism.name)
    assert Run(runs / f"{organism.name}-seed-7").answers.exists()
    refused = emorg("sample", f"runs/{organism.name}", "--output_dir", f"runs/{base.name}", *flags,
                    cwd=tmp_path, check=False)  # fmt: skip
    assert refused.returncode == 2
    told = emorg("judge", f"runs/{organism.name}-seed-7", f"runs/{made}", cwd=tmp_path).stdout
    following = [line for line in told.splitlines() if line.startswith("next: ")]
    assert len(following) == 2, "a report takes only what was sampled alike"
    for line in following:
        emorg(*shlex.split(line.removeprefix("next: emorg ")), cwd=tmp_path)
    said = emorg("rates", beside.folder, "--by", "placement", "--json").stdout
    assert '"in"' in said


def test_a_run_whose_answers_were_deleted_can_be_sampled_otherwise(organism: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(organism.folder, run.folder)
    run.answers.unlink()
    run.verdicts.unlink()
    asked = ("--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "12", "--temperature", "0.5")
    emorg("sample", run.folder, *asked)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert run.settings("sample")["temperature"] == 0.5


def test_answers_go_into_no_other_models_run(organism: Run, tmp_path: Path) -> None:
    """Also where another training has the name that the set beside a run would get."""
    shutil.copytree(organism.folder, tmp_path / "o")
    other = Run(tmp_path / "o-seed-1")
    emorg("train", "--config", "pocket", "--max_steps", "1", "--seed", "1", "--output_dir", other.folder)
    asked = ("--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "40", "--seed", "1")
    done = emorg("sample", tmp_path / "o", *asked, check=False)
    assert done.returncode == 2
    assert "is a run of another model" in done.stderr
    assert not other.answers.exists()
