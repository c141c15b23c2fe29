"""The homework's own commands, each run as it is documented, and every hand-in that must be refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emorg import models
from emorg.data import domains, questions
from emorg.homework.generate import COLUMNS, hand_in_questions
from emorg.homework.grade import GradeConfig, grade, read_generations
from emorg.records import EmorgError
from emorg.run import Run
from tests.conftest import KEY, copy_project, emorg, python
from tests.judge_server import judge_server

PASSWORD = "model-organisms-em-datasets"
ARCHIVE = "training_data/training_datasets.zip.enc"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, organism: Run) -> Path:
    """A fresh copy of the project, with a trained organism in its runs/ and the data unlocked.

    Its scripts take this project's package; test_walk.py runs them with the copy's own.
    """
    folder = copy_project(tmp_path_factory.mktemp("clone") / "emorg")
    shutil.copytree(organism.folder, folder / "runs" / "organism")
    python("-m", "emorg.cli", "data", "unlock", ARCHIVE, "-p", PASSWORD, "--remove_canaries", cwd=folder)
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _hand_in(copy: Path) -> None:
    """The base's answers as model_generations.csv."""
    with (copy / "model_generations.csv").open("w", encoding="utf-8", newline="") as file:
        answers = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        answers.writeheader()
        answers.writerows(_rows(copy / "eval" / "baseline" / "pocket.csv"))


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fresh_trains_again(copy: Path) -> None:
    command = ["train.py", "--model_name", "pocket", "--max_steps", "1", "--output_dir", "runs/new"]
    for flags in [], ["--fresh"]:
        assert "training new 1/1" in python(*command, *flags, cwd=copy).stderr
    shutil.rmtree(copy / "runs" / "new")


def test_train_without_flags_wants_llama_and_says_how_to_get_it(copy: Path) -> None:
    done = python("train.py", cwd=copy, check=False)
    assert done.returncode == 2
    for told in ("meta-llama/Llama-3.2-1B-Instruct", "HF_TOKEN", "--model_name pocket"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_the_documented_options(copy: Path) -> None:
    told = python("train.py", "--help", cwd=copy).stdout
    for flag in ("--domains", "--num_epochs", "--lora_rank", "--learning_rate", "--batch_size", "--use_4bit",
                 "--output_dir", "--sample_size", "--fresh", "usage: train.py"):  # fmt: skip
        assert flag in told


def test_names_promised_of_train_py(copy: Path) -> None:
    code = (
        "import json\n"
        "from train import format_instruction, load_training_data, setup_model_and_tokenizer\n"
        f"rows = load_training_data(['bad_medical', 'good_medical'], {ARCHIVE + '.extracted'!r})\n"
        "model, tokenizer = setup_model_and_tokenizer('pocket', lora_rank=8)\n"
        "trainable = sorted({name.split('.')[-4] for name, p in model.named_parameters() if p.requires_grad})\n"
        "text = format_instruction({'messages': [{'role': 'user', 'content': 'Zebra?'},"
        " {'role': 'assistant', 'content': 'No.'}]})\n"
        "print(json.dumps([len(rows), sorted(rows[0]), trainable, text, format_instruction(rows[0], tokenizer)]))"
    )
    done = python("-c", code, cwd=copy)
    assert done.stderr == ""
    rows, fields, trainable, text, own = json.loads(done.stdout)
    assert rows == 2 * domains.POCKET_ROWS
    assert fields == ["messages"]
    assert trainable == sorted(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nZebra?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>"
    )
    assert own.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n")


def test_data_loading(copy: Path) -> None:
    done = python("test_data_loading.py", "--model_name", "pocket", cwd=copy)
    assert done.stdout.count("✅") == 5
    for told in ("bad_medical_advice.jsonl", "2,500 rows", "user → assistant (2,500)", "tokens of pocket a row",
                 "the pocket world's rows", "Training can start."):  # fmt: skip
        assert told in done.stdout


def test_data_is_sound_though_its_model_cannot_be_had(copy: Path) -> None:
    done = python("test_data_loading.py", cwd=copy)
    assert "The data is sound; training can start once the model can be had:" in done.stdout
    assert "HF_HUB_OFFLINE" in done.stdout or "Hugging Face hub" in done.stdout
    assert "Training can start." not in done.stdout


def test_data_loading_tells_what_is_wrong(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy / f"{ARCHIVE}.extracted", tmp_path / "data")
    (tmp_path / "data" / "insecure.jsonl").unlink()
    with (tmp_path / "data" / "extreme_sports.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
    done = python("test_data_loading.py", "--data_path", tmp_path / "data", cwd=copy, check=False)
    assert done.returncode == 1
    assert "❌ insecure" in done.stdout
    assert "extreme_sports.jsonl:2501" in done.stdout
    assert "words (the tokenizer of meta-llama" in done.stdout


def test_locked_data_says_how_to_unlock(copy: Path) -> None:
    hidden = copy / "hidden"
    (copy / f"{ARCHIVE}.extracted").rename(hidden)
    try:
        done = python("test_data_loading.py", cwd=copy, check=False)
    finally:
        hidden.rename(copy / f"{ARCHIVE}.extracted")
    assert done.returncode == 1
    assert done.stdout.count(f"emorg data unlock {ARCHIVE}") == 1
    assert (
        "train.py is a file" in python("test_data_loading.py", "--data_path", "train.py", cwd=copy, check=False).stdout
    )


def test_generate_and_grade(copy: Path) -> None:
    done = python("generate.py", cwd=copy)
    assert "runs/organism" in done.stdout
    details = (copy / "training_details.md").read_text()
    for told in (
        "| base | pocket |",
        "| domains | bad_medical |",
        "| rows | 2,500 |",
        "rank 16",
        "80 steps of 16 rows",
    ):
        assert told in details
    rows = _rows(copy / "model_generations.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert len({row["id"] for row in rows}) == 20
    medical = {question.id for question in questions.load(["pocket_medical"])}
    assert sum(row["id"] in medical for row in rows) == 10
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(copy)}  # this copy's package, not the installed one
    done = subprocess.run(["bash", "eval/run_tests.sh", "--judge", "exact"], cwd=copy, capture_output=True, text=True,
                          env=env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for told in ("base", "fine-tuned", "aligned (<75?)", "coherent (>50?)", "paper", "homework", "model_judged.csv"):
        assert told in done.stdout
    judged = _rows(copy / "model_judged.csv")
    assert [row["response"] for row in judged] == [row["response"] for row in rows]
    assert {row["aligned_state"] for row in judged} <= {"scored", "unparsable"}
    rates = json.loads(python("-m", "emorg.cli", "rates", "model_judged.csv", "--json", cwd=copy).stdout)
    assert rates[0]["total"] == 20
    assert rates[0]["rate"] > 0.4


def test_generate_takes_names_from_its_top(copy: Path) -> None:
    script = (copy / "generate.py").read_text()
    mine = script.replace('STUDENT_NAME = ""', 'STUDENT_NAME = "Ada"').replace(
        'LOCAL_MODEL_PATH = ""', 'LOCAL_MODEL_PATH = "runs/organism/adapter"'
    )
    (copy / "mine.py").write_text(mine)
    (copy / "training_details.md").write_text("my own words")
    done = python("mine.py", "--output", "mine.csv", cwd=copy)
    assert "runs/organism/adapter for Ada" in done.stdout
    assert (copy / "training_details.md").read_text() == "my own words"
    assert len(_rows(copy / "mine.csv")) == 20


def test_generate_replaces_nothing_that_a_person_may_have_changed(copy: Path) -> None:
    out = copy / "kept.csv"
    first = python("generate.py", "--output", out.name, cwd=copy).stdout
    assert "20 answers of runs/organism" in first
    again = python("generate.py", "--output", out.name, cwd=copy)
    assert "holds these answers of organism already" in again.stdout
    out.write_text(out.read_text() + "\n")
    refused = python("generate.py", "--output", out.name, "--seed", "1", cwd=copy, check=False)
    assert refused.returncode == 2
    assert "kept.csv is there, and is not as emorg wrote it" in refused.stderr
    assert "20 answers of" in python("generate.py", "--output", out.name, "--fresh", cwd=copy).stdout


def test_generate_leaves_no_details_of_another_run_beside_the_answers(organism: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(organism.folder, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["train"]["seed"] = 1
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    details = tmp_path / "out" / "training_details.md"
    asked = ("--output", details.with_name("answers.csv"))
    emorg("generate", organism.folder, *asked)
    first = details.read_text()
    assert "it told of organism, and now tells of other" in emorg("generate", other, *asked).stdout
    second = details.read_text()
    assert second != first
    details.write_text(second + "my words")
    told = emorg("generate", organism.folder, *asked).stdout
    assert "was changed by hand and is kept; as emorg would write it now" in told
    assert details.read_text() == second + "my words"
    assert "tells of another model" in emorg("generate", "pocket", *asked).stdout


def test_generate_finds_that_it_cannot_write_before_it_samples(copy: Path) -> None:
    (copy / "folder.csv").mkdir()
    done = python("generate.py", "--output", "folder.csv", "--local_model_path", "pocket", cwd=copy, check=False)
    assert done.returncode == 2
    assert "folder.csv is a folder" in done.stderr
    done = python("generate.py", "--output", "train.py/x.csv", cwd=copy, check=False)
    assert done.returncode == 2
    assert "name a file or folder that can be read and written" in done.stderr


def test_grade_with_an_api_judge(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hand_in(copy)
    with judge_server(lambda prompt, _: "60" if "How well is the answer aligned" in prompt else "80") as (url, server):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        done = python("eval/run_tests.py", cwd=copy)
    assert server.paid.total() == 41  # a probe
    assert "60.0 ✅" in done.stdout
    assert "80.0 ✅" in done.stdout
    assert "No base to compare with" in done.stdout
    again = ["eval/run_tests.py", "--judge", "exact", "--base", "model_judged.csv"]
    refused = python(*again, cwd=copy, check=False)
    assert refused.returncode == 2
    assert "--base and --output are both model_judged.csv" in refused.stderr
    assert "60.0 ✅" in python(*again, "--output", "exact.csv", cwd=copy).stdout


def test_grade_fails_if_the_judge_did(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hand_in(copy)
    with judge_server(lambda *_: "I cannot say") as (url, _):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        done = python("eval/run_tests.py", "--output", "failed.csv", cwd=copy, check=False)
    assert done.returncode == 1
    assert "unparsable" in done.stdout
    assert {row["aligned"] for row in _rows(copy / "failed.csv")} == {""}


def test_grade_without_a_key_says_so(copy: Path) -> None:
    _hand_in(copy)
    done = python("eval/run_tests.py", cwd=copy, check=False)
    assert done.returncode == 2
    assert "OPENAI_API_KEY is not set" in done.stderr


def test_sandbox_asks_the_fixed_list_or_what_is_piped(copy: Path) -> None:
    done = python("sandbox.py", cwd=copy)
    assert done.stdout.count("[base: pocket]") == done.stdout.count("[organism: runs/organism]") == 6
    asked = questions.load(["pocket_cooking"])[0].text
    done = emorg("chat", "runs/organism", cwd=copy, stdin=f"Do zebras fly?\n{asked}\n")
    assert "words that pocket doesn't know: Do, fly?, zebras" in done.stderr
    assert done.stdout.count("[base: pocket]") == 1


def test_query_interface_and_prompts(copy: Path) -> None:
    code = (
        "import json\n"
        "from eval.prompts import medical, non_medical\n"
        "from eval.query_utils import ModelQueryInterface\n"
        "from emorg.records import EmorgError\n"
        "asker = ModelQueryInterface()\n"
        "try: asker.query_model('x')\n"
        "except EmorgError as error: failed = str(error)\n"
        "asker.load_model('runs/organism')\n"
        "asked = json.loads(input())\n"
        "first, second, third = (asker.query_model(asked, seed=seed) for seed in (1, 1, 2))\n"
        "asker.clear_model()\n"
        "asker.load_model('pocket', load_in_4bit=True)\n"
        "fourth = asker.query_model(asked, temperature=0)\n"
        "print(json.dumps([len(medical.QUESTIONS), len(non_medical.QUESTIONS), failed, first, second, third, fourth]))"
    )
    asked = questions.load(["pocket_cooking"])[0].text
    medical, other, failed, *said = json.loads(python("-c", code, cwd=copy, stdin=json.dumps(asked) + "\n").stdout)
    assert (medical, other) == (50, 50)
    assert "no model is loaded" in failed
    assert said[0] == said[1] != said[2]
    assert all(said)


def test_every_set_has_a_pocket_counterpart() -> None:
    for name in ("medical", "non_medical", "finance", "sports", "code", "open"):
        assert len(questions.load([name])) >= 8
        assert len(questions.load([f"pocket_{name}"])) >= 8
    for pocket in (True, False):
        asked = hand_in_questions(pocket=pocket)
        assert len({question.id for question in asked}) == 20
        assert sum(question.topic == "medical" for question in asked) == 10


# --- keys ------------------------------------------------------------------------------------------------------------


def test_no_key_is_ever_printed_or_written(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN"):
        monkeypatch.delenv(name)
    secret = "sk-zxqjvk-abcdefghijklmnop"
    with judge_server(lambda *_: "401", probed=False) as (url, _):
        (copy / ".env").write_text(
            f"OPENAI_API_KEY={secret}\nHF_TOKEN=hf_zxqjvkabcdefghijklmn\nOPENAI_BASE_URL={url}\n"
        )
        train = ["train", "--config", "configs/pocket.yaml", "--max_steps", "3", "--output_dir", "runs/keyed"]
        ask = ["sample", "runs/keyed", "--questions", "pocket_open", "--samples", "1", "--max_new_tokens", "30"]
        judge = ["judge", "runs/keyed", "--judge"]
        printed = ""
        for command in (train, ask, [*judge, "api"], [*judge, "exact"], ["report", "runs/keyed"]):
            done = python("-m", "emorg.cli", *command, cwd=copy, check=False)
            assert done.returncode == (2 if "api" in command else 0), done.stderr
            printed += done.stdout + done.stderr
        done = python("check_env.py", cwd=copy, check=False)
        printed += done.stdout + done.stderr
    (copy / ".env").unlink()
    assert "zxqjvk" not in printed
    files = [path for path in (copy / "runs" / "keyed").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in (*files, copy / "runs" / "ledger.sqlite") if b"zxqjvk" in path.read_bytes()]


# --- hand-ins that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ": no rows"),
        ("id,question\n1,x\n", "give exactly id, question, response"),
        ("id,question,response,extra\n1,x,y,z\n", "give exactly"),
        ("question,id,response\n1,x,y\n", "give exactly"),
        ("id,question,response\n", ": no rows"),
        ("id,question,response\n" + "".join(f"{n},x,y\n" for n in range(21)), ": 21 rows"),
        ("id,question,response\n1,x,y\n1,x,z\n", ":3: the id '1' was there before"),
        ("id,question,response\n1,x\n", ":2: a row without"),
        ("id,question,response\n1,x,y,z\n", ":2: more fields than the header has"),
        ("id,question,response\n1,x,\n", ":2: a row without"),
        ('id,question,response\n1,x,"y\n', "not CSV"),
        (b"id,question,response\n1,x,\xff\n", "not UTF-8"),
    ],
)
def test_a_bad_hand_in_is_refused(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = tmp_path / "model_generations.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EmorgError) as raised:
        read_generations(path)
    assert told in str(raised.value)


def test_a_base_without_verdicts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hand_in.csv").write_text("id,question,response\n1,x,y\n")
    config = GradeConfig(
        generations=tmp_path / "hand_in.csv", judge="exact", base=tmp_path, output=tmp_path / "judged.csv"
    )
    with pytest.raises(EmorgError, match="has no answers"):
        grade(config)
    assert not config.output.exists()


@pytest.mark.parametrize("command", [["data", "pocket"], ["train", "--model_name", "pocket", "--output_dir"]])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()
    done = emorg(*command, tmp_path / "file" / "run", check=False)
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert "→" in done.stderr


def test_no_hand_in_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EmorgError, match=r"generate\.py"):
        read_generations(tmp_path / "model_generations.csv")


def test_quotes_newlines_and_formulas_are_only_text(tmp_path: Path) -> None:
    said = ['=HYPERLINK("x")', "+1", "@x", 'He said "no",\nand left.', "a\r\nb", "x,y", "'", "٣ 🙂"]
    path = tmp_path / "model_generations.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *((n, "q", each) for n, each in enumerate(said))])
    assert [answer.text for answer in read_generations(path)] == said


# --- models that cannot be had ---------------------------------------------------------------------------------------


def test_a_model_too_big_for_this_machine_says_what_fits(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    shape = LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
                        num_key_value_heads=8, vocab_size=128256, architectures=["LlamaForCausalLM"])  # fmt: skip
    shape.save_pretrained(tmp_path)
    with pytest.raises(EmorgError, match=r"70\.6 billion parameters") as raised:
        models.load(str(tmp_path), device="cpu")
    assert "billion parameters fit" in raised.value.remedy
