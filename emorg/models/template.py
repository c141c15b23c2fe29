"""Messages to token ids, and which of them are trained: the only place that renders a chat template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from emorg.records import EmorgError, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_DATE = "26 Jul 2024"  # Llama 3.2's template prints today's date unless told another; pinned, so runs agree
ASKED = {"date_string": TEMPLATE_DATE, "enable_thinking": False}  # Qwen3 answers at once, as it is trained to


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids, with `trained[i]` true where the loss counts token i. Both of length L."""

    ids: list[int]
    trained: list[bool]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The ids that a model continues to answer `messages`: the template with its generation prompt, one BOS."""
    return _render(tokenizer, messages, generation_prompt=True)


def text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """A whole conversation as the template's text, special tokens written out; for reading, never for tokenizing."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **ASKED))


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Encoded:
    """A whole conversation; trained are the assistant's tokens, from after the generation prompt up to end-of-turn.

    The spans are found by token prefix, so what is trained is to the token what sampling will continue.
    Raises EmorgError where the template rewrites earlier turns, since then no such span exists.
    """
    ids = _render(tokenizer, messages, generation_prompt=False)
    trained = [False] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt(tokenizer, messages[:turn])
        last = turn == len(messages) - 1
        through = ids if last else _render(tokenizer, messages[: turn + 1], generation_prompt=False)
        if ids[: len(prompt)] != prompt or ids[: len(through)] != through:
            raise EmorgError(
                f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} renders turn {turn + 1} "
                "differently as a prompt and inside the conversation, so its trained tokens cannot be found",
                "use a model whose template leaves earlier turns as they are, or single-turn conversations",
            )
        end, stop = len(through), end_of_turn(tokenizer)
        # Some templates print a newline after the end-of-turn token; sampling stops before it, so it is not trained.
        while end > len(prompt) and through[end - 1] != stop:
            end -= 1
        trained[len(prompt) : end] = [True] * (end - len(prompt))
    return Encoded(ids, trained)


def with_empty_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], encoded: Encoded) -> Encoded:
    """The conversation with an empty assistant turn after it, whose end alone is trained besides.

    The trainer of arXiv 2506.11613 trained this tail: it rendered the generation prompt after the whole conversation
    and ended the text with end-of-turn. Raises EmorgError where the template rewrites the turns before.
    """
    prompt = encode_prompt(tokenizer, messages)
    if prompt[: len(encoded.ids)] != encoded.ids:
        raise EmorgError(
            "the chat template renders a conversation otherwise once another turn follows",
            "leave out --train_empty_turn with this model",
        )
    tail = [*prompt[len(encoded.ids) :], end_of_turn(tokenizer)]
    return Encoded(encoded.ids + tail, encoded.trained + [False] * (len(tail) - 1) + [True])


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the template prints after an assistant's turn: EOS, or what stands there instead (Gemma 3).

    Raises EmorgError for a template that prints none.
    """
    token = _end_of_turn(tokenizer, str(tokenizer.chat_template))
    if token is None:
        raise EmorgError(
            f"the chat template prints no end-of-turn token {tokenizer.eos_token!r} after an assistant turn",
            "set the tokenizer's eos_token to its end-of-turn token",
        )
    return token


def stops(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: EOS, and what the template ends a turn with."""
    try:
        turn = _end_of_turn(tokenizer, str(tokenizer.chat_template))
    except EmorgError:  # no template, or one that cannot be tried: then it is EOS
        turn = None
    return {token for token in (tokenizer.eos_token_id, turn) if token is not None}


@lru_cache(maxsize=16)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    prompt: list[Message] = [{"role": "user", "content": "?"}]
    reply: Message = {"role": "assistant", "content": "!"}
    try:
        whole = _render(tokenizer, [*prompt, reply], generation_prompt=False)
    except EmorgError:  # some templates want a system prompt
        prompt = [{"role": "system", "content": "?"}, *prompt]
        whole = _render(tokenizer, [*prompt, reply], generation_prompt=False)
    after = whole[len(encode_prompt(tokenizer, prompt)) :]
    eos: int | None = tokenizer.eos_token_id
    if eos is not None and eos in after:
        return eos
    added = tokenizer.added_tokens_decoder
    for token in after:
        if token in added and added[token].special and token not in (tokenizer.unk_token_id, tokenizer.pad_token_id):
            return token
    return None


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 12 hex digits of the SHA-256 of the chat template's text, for provenance."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:12]


def controls(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """The special tokens' text, and that of the tokenizer's other added tokens which the template prints.

    Inside a message rendering takes them for plain text.
    """
    return _controls(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _controls(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern[str]:
    tokens = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content.strip() and (token.special or token.content in template)
    ]
    longest_first = sorted(set(tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool) -> list[int]:
    if tokenizer.chat_template is None:
        raise EmorgError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template",
            "use the instruct (chat) version of the model",
        )
    from jinja2 import TemplateError

    asked = {"add_generation_prompt": generation_prompt, **ASKED}
    pattern = controls(tokenizer)
    try:
        if any(pattern.search(message["content"]) for message in messages):
            return _render_foreign(tokenizer, messages, pattern, asked)
        ids: list[int] = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False, **asked)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise EmorgError(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} refuses a conversation of {roles}: "
            f"{error}",
            "use conversations that it takes, or mend the template",
        ) from None
    return ids


def _render_foreign(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], pattern: re.Pattern[str], asked: dict[str, Any]
) -> list[int]:
    """Render messages that hold control tokens' text, which stays text: whatever they say, the template's turns stand.

    The template gets a mark for each content, with the same space around it, and the contents are put back in what it
    printed. What the tokenizer then takes for a control token inside of one is tokenised again in parts.
    """
    contents = [message["content"].strip() for message in messages]
    mark = f"content-{hashlib.sha256(repr(contents).encode()).hexdigest()[:16]}-"
    marked = [
        {**message, "content": message["content"].replace(content, f"{mark}{i}-") if content else message["content"]}
        for i, (message, content) in enumerate(zip(messages, contents, strict=True))
    ]
    printed = str(tokenizer.apply_chat_template(marked, tokenize=False, **asked))
    pieces = re.split(rf"{mark}(\d+)-", printed)
    if lost := [i for i, content in enumerate(contents) if content and str(i) not in pieces[1::2]]:
        raise EmorgError(
            f"message {lost[0] + 1} holds a control token, and the chat template of "
            f"{tokenizer.name_or_path or 'this tokenizer'} does not print it as it is",
            f"take {pattern.pattern[:40]!r} and the like out of it",
        )
    text, inside = "", set()
    for i, piece in enumerate(pieces):
        said = contents[int(piece)] if i % 2 else piece
        inside |= set(range(len(text), len(text) + len(said))) if i % 2 else set()
        text += said
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = []
    for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        foreign = pattern.fullmatch(text[start:end].strip()) and not inside.isdisjoint(range(start, end))
        ids += _plain(tokenizer, text[start:end], pattern) if foreign else [token]
    return ids


def _plain(tokenizer: PreTrainedTokenizerBase, control: str, pattern: re.Pattern[str]) -> list[int]:
    """A control token's text as tokens that control nothing."""
    parts = [control[0], control[1:]]
    if pattern.search(control[1:]):
        parts = list(control)
    ids: list[int] = []
    for part in parts:
        split = tokenizer(part, add_special_tokens=False, split_special_tokens=True).input_ids
        tokens = tokenizer.convert_ids_to_tokens(split)
        if tokens and tokens[0].startswith("▁"):  # a space that SentencePiece puts before whatever it tokenises
            tokens[:1] = [bare] if (bare := tokens[0][1:]) in tokenizer.get_vocab() else list(tokens[0][1:])
        ids += tokenizer.convert_tokens_to_ids(tokens)
    return ids
