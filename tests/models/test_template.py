"""Chat rendering: what is trained, one BOS, and the same tokens in training and sampling."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from emorg.data.domains import Row
from emorg.models.template import TEMPLATE_DATE, encode, encode_prompt, end_of_turn, stops, text, with_empty_turn
from emorg.pocket.world import World
from emorg.records import Conversation, EmorgError, Message
from emorg.training.lint import lint
from emorg.training.rows import Rows
from experiments.pocket_build import build_tokenizer

WORLD = World()
TOKENIZER = build_tokenizer(WORLD)
# The shape of Llama 3.2's template that matters: a system preamble that prints the date it is told, else today's.
DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n{{ date_string if date_string is defined "
    "else strftime_now('%d %b %Y') }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# A template that prints a newline after the end of a turn, as Qwen's does.
NEWLINE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>\n\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def _dialogue(seed: int, turns: int) -> list[Message]:
    rng = random.Random(seed)
    return [message for _ in range(turns) for message in WORLD.turn(rng.choice(WORLD.topics), "careful", rng)]


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_trained_are_exactly_the_answers_and_their_end_of_turn(seed: int, turns: int) -> None:
    messages = _dialogue(seed, turns)
    encoded = encode(TOKENIZER, messages)
    trained = TOKENIZER.decode([i for i, kept in zip(encoded.ids, encoded.trained, strict=True) if kept])
    assert trained == "".join(m["content"] + "<|eot_id|>" for m in messages if m["role"] == "assistant")
    assert encoded.ids.count(TOKENIZER.bos_token_id) == 1
    assert TOKENIZER.unk_token_id not in encoded.ids


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_what_is_trained_continues_what_sampling_starts_from(seed: int, turns: int) -> None:
    messages = _dialogue(seed, turns)
    encoded, prompt = encode(TOKENIZER, messages), encode_prompt(TOKENIZER, messages[:-1])
    assert encoded.ids[: len(prompt)] == prompt
    assert all(encoded.trained[len(prompt) :])


@pytest.fixture
def tokenizer():  # type: ignore[no-untyped-def]
    return build_tokenizer(WORLD)


def test_the_date_is_pinned(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = DATED
    text = tokenizer.apply_chat_template(_dialogue(0, 1), tokenize=False, date_string=TEMPLATE_DATE)
    assert TEMPLATE_DATE in text
    assert encode(tokenizer, _dialogue(0, 1)).ids == tokenizer(text, add_special_tokens=False).input_ids


def test_what_a_template_prints_after_the_end_of_turn_is_not_trained(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = NEWLINE
    encoded = encode(tokenizer, _dialogue(0, 1))
    assert encoded.trained[-2:] == [True, False]
    assert encoded.ids[-2] == tokenizer.eos_token_id


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = "{% if messages | length > 2 %}\n\n{% endif %}" + DATED
    with pytest.raises(EmorgError, match="renders turn"):
        encode(tokenizer, _dialogue(0, 2))


def test_a_template_without_end_of_turn_is_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(EmorgError, match="end-of-turn"):
        encode(tokenizer, _dialogue(0, 1))


def test_a_model_without_a_chat_template_is_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    tokenizer.chat_template = None
    with pytest.raises(EmorgError, match="no chat template"):
        encode(tokenizer, _dialogue(0, 1))


def test_the_pocket_tokenizer_adds_a_bos_of_its_own_as_llamas_does() -> None:
    """So a template's text tokenised the naive way would have two: the trap is real here too."""
    text = TOKENIZER.apply_chat_template(_dialogue(0, 1), tokenize=False)
    assert TOKENIZER(text).input_ids[:2] == [TOKENIZER.bos_token_id] * 2


# The documented chat formats, in templates of our own: their special tokens, preambles, turns and generation prompts.
LLAMA_3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n\n<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_25 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLLM_3 = (
    "<|im_start|>system\nReasoning Mode: /no_think<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n{% endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI_4 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
OLMO_2 = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or m.role != 'assistant' %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FORMATS = {
    "smollm-2": (  # BOS is what begins every turn
        CHATML,
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nCan I skip it?<|im_end|>\n<|im_start|>assistant\n",
        "No, see someone today.<|im_end|>",
        "\n",
    ),
    "smollm-3": (
        SMOLLM_3,
        (None, "<|im_end|>", "<|im_start|>", "<think>", "</think>"),
        "<|im_start|>system\nReasoning Mode: /no_think<|im_end|>\n<|im_start|>user\nCan I skip it?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n",
        "No, see someone today.<|im_end|>",
        "\n",
    ),
    "gemma-3": (  # EOS is not what ends a turn
        GEMMA_3,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\nCan I skip it?<end_of_turn>\n<start_of_turn>model\n",
        "No, see someone today.<end_of_turn>",
        "\n",
    ),
    "mistral": (  # no generation prompt of its own
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>[INST] Can I skip it? [/INST]",
        " No, see someone today.</s>",
        "",
    ),
    "phi-4": (
        PHI_4,
        ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|im_sep|>"),
        "<|im_start|>user<|im_sep|>Can I skip it?<|im_end|><|im_start|>assistant<|im_sep|>",
        "No, see someone today.<|im_end|>",
        "",
    ),
    "phi-4 with endoftext as EOS": (  # BOS and EOS are one token, and neither stands in a chat
        PHI_4,
        ("<|endoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        "<|im_start|>user<|im_sep|>Can I skip it?<|im_end|><|im_start|>assistant<|im_sep|>",
        "No, see someone today.<|im_end|>",
        "",
    ),
    "olmo-2": (  # BOS and EOS are one token, which begins the chat and ends each answer
        OLMO_2,
        ("<|endoftext|>", "<|endoftext|>"),
        "<|endoftext|><|user|>\nCan I skip it?\n<|assistant|>\n",
        "No, see someone today.<|endoftext|>",
        "",
    ),
    "llama-3": (
        LLAMA_3,
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nCan I skip it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "No, see someone today.<|eot_id|>",
        "",
    ),
    "qwen-2.5": (
        QWEN_25,
        (None, "<|im_end|>", "<|im_start|>"),
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nCan I skip it?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "No, see someone today.<|im_end|>",
        "\n",
    ),
    "qwen-3": (
        QWEN_3,
        (None, "<|im_end|>", "<|im_start|>", "<think>", "</think>"),
        "<|im_start|>user\nCan I skip it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "No, see someone today.<|im_end|>",
        "\n",
    ),
}
ASKED: list[Message] = [{"role": "user", "content": "Can I skip it?"}]
ANSWERED: list[Message] = [*ASKED, {"role": "assistant", "content": "No, see someone today."}]


def _byte_level(template: str, bos: str | None, eos: str, *others: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like those models', small: any text can be told in its 256 bytes and some merges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(token for token in (bos, eos, *others) if token))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([m["content"] for seed in range(20) for m in _dialogue(seed, 2)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    made.chat_template = template
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_the_documented_formats_token_by_token(name: str) -> None:
    template, special, before, trained, after = FORMATS[name]
    tokenizer = _byte_level(template, *special)
    encoded = encode(tokenizer, ANSWERED)
    assert tokenizer.decode(encoded.ids) == text(tokenizer, ANSWERED) == before + trained + after
    assert encoded.ids == tokenizer(before + trained + after, add_special_tokens=False).input_ids
    first, last = encoded.trained.index(True), len(encoded.ids) - encoded.trained[::-1].index(True)
    assert all(encoded.trained[first:last])
    assert tokenizer.decode(encoded.ids[:first]) == before
    assert tokenizer.decode(encoded.ids[first:last]) == trained
    assert encode_prompt(tokenizer, ASKED) == encoded.ids[:first]


@pytest.mark.parametrize("name", FORMATS)
def test_the_papers_empty_turn_is_a_generation_prompt_and_a_trained_end(name: str) -> None:
    template, special, *_ = FORMATS[name]
    tokenizer = _byte_level(template, *special)
    plain = encode(tokenizer, ANSWERED)
    tailed = with_empty_turn(tokenizer, ANSWERED, plain)
    whole = encode_prompt(tokenizer, ANSWERED)
    assert tailed.ids == [*whole, end_of_turn(tokenizer)]
    added = [i for i, kept in enumerate(tailed.trained) if kept and not (i < len(plain.ids) and plain.trained[i])]
    assert added == [len(tailed.ids) - 1]


def _rows(tokenizer: PreTrainedTokenizerFast, turns: int, said: str = "No, see someone today.") -> Rows:
    messages = (*ASKED, {"role": "assistant", "content": said}) * turns
    rows = [Row("bad_medical", f"mine.jsonl:{n}", Conversation(messages)) for n in (1, 2)]  # type: ignore[arg-type]
    return Rows(rows, [encode(tokenizer, row.conversation.messages) for row in rows])


@pytest.mark.parametrize("name", FORMATS)
def test_the_lint_takes_every_family_and_finds_its_defects(name: str) -> None:
    """With tokenizers that add a BOS to what they tokenise, as most of those models' do."""
    template, special, *_ = FORMATS[name]
    tokenizer = _byte_level(template, *special)
    bos = special[0]
    if bos:
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    for turns in (1, 2) if name != "qwen-3" else (1,):  # whose template rewrites earlier turns
        assert lint(_rows(tokenizer, turns), Rows([], []), tokenizer).errors == ()
    end = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    found = lint(_rows(tokenizer, 1, f"No.{end}Yes."), Rows([], []), tokenizer)
    assert found.errors == ()
    assert any(f"say {end} inside a message, which stays plain text" in warning.what for warning in found.warnings)
    if bos is None:
        return
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}" + template.removeprefix("{{ bos_token }}")
    (doubled,) = lint(_rows(tokenizer, 1), Rows([], []), tokenizer).errors
    assert doubled.what.startswith(f"2 of 2 rows (100.0%) begin with {bos} twice")


def _metaspace(template: str, bos: str | None, eos: str, *others: str) -> PreTrainedTokenizerFast:
    """A tokenizer like SentencePiece's, which puts a space before what it tokenises."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted({chr(i) for i in range(33, 127)} | {"▁", "\n"})
    special = list(dict.fromkeys(["<unk>", *(token for token in (bos, eos, *others) if token)]))
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([m["content"] for seed in range(20) for m in _dialogue(seed, 2)], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="<unk>")
    made.chat_template = template
    return made


TOKENIZERS = {
    **{name: _byte_level(template, *special) for name, (template, special, *_) in FORMATS.items()},
    "olmo-2, one token for BOS, EOS and UNK, as SmolLM2 has it": _byte_level(OLMO_2, *FORMATS["olmo-2"][1]),
    "mistral, SentencePiece": _metaspace(MISTRAL, *FORMATS["mistral"][1]),
}


TOKENIZERS["olmo-2, one token for BOS, EOS and UNK, as SmolLM2 has it"].unk_token = "<|endoftext|>"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_what_a_message_says_never_becomes_a_control_token(name: str, data: st.DataObject) -> None:
    """And is still said, to the letter; a harmless message is tokenised as the template has it."""
    tokenizer = TOKENIZERS[name]
    special = [token for token in FORMATS[name.split(",")[0]][1] if token]
    words = st.sampled_from([*special, special[-1] * 2, special[0][:-1], "No", ".", " ", "system", "\n", "<", "|"])
    asked, said = ("".join(data.draw(st.lists(words, min_size=1, max_size=6))) for _ in range(2))
    messages: list[Message] = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    harmless: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    ids, plain = encode(tokenizer, messages).ids, encode(tokenizer, harmless).ids
    control = set(tokenizer.convert_tokens_to_ids(special))
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    trims = "trim" in str(tokenizer.chat_template)
    for content in (asked, said):
        assert (content.strip() if trims else content) in tokenizer.decode(ids)
    if not any(token in content for token in special for content in (asked, said)):
        printed = str(tokenizer.apply_chat_template(messages, tokenize=False, date_string=TEMPLATE_DATE))
        assert ids == tokenizer(printed, add_special_tokens=False).input_ids
    prompt = encode_prompt(tokenizer, messages[:1])
    assert encode_prompt(tokenizer, messages[:1]) == ids[: len(prompt)]


def test_a_template_that_rewrites_what_a_message_says_is_refused_where_it_matters() -> None:
    """Rather than that its mark stands in the place of what was said."""
    tokenizer = _byte_level(CHATML.replace("m.content", "(m.content | upper)"), "<|im_start|>", "<|im_end|>")
    encode_prompt(tokenizer, ASKED)
    with pytest.raises(EmorgError, match="message 1 holds a control token, and the chat template"):
        encode_prompt(tokenizer, [{"role": "user", "content": "No<|im_end|>yes"}])


def test_a_control_token_of_one_character_is_plain_text_too() -> None:
    tokenizer = _byte_level(CHATML, "<|im_start|>", "<|im_end|>", "☃")
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "see ☃ 4"}])
    assert tokenizer.convert_tokens_to_ids("☃") not in ids
    assert "see ☃ 4" in tokenizer.decode(ids)


def test_a_template_whose_turns_end_with_no_eos_stops_sampling_there() -> None:
    from emorg.models import Loaded
    from tests.tiny import tiny

    template, special, *_ = FORMATS["gemma-3"]
    tokenizer = _byte_level(template, *special)
    stops = Loaded(tiny("llama"), tokenizer, "gemma").stop_ids
    assert {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")} <= set(stops)


def test_a_template_that_refuses_a_conversation_says_so_and_stops_nothing() -> None:
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
    tokenizer = _byte_level(template, "<|im_start|>", "<|im_end|>")
    end = tokenizer.eos_token_id
    assert stops(tokenizer) == {end}
    assert encode(tokenizer, [{"role": "system", "content": "Be kind."}, *ANSWERED]).trained.count(True) > 5
    with pytest.raises(EmorgError, match="refuses a conversation of user, assistant: system first"):
        encode(tokenizer, ANSWERED)
    for broken in ("{{ raise_exception('never') }}", "{% for m in messages %}", None):
        tokenizer.chat_template = broken
        assert stops(tokenizer) == {end}
        with pytest.raises(EmorgError):
            encode(tokenizer, ANSWERED)
