"""Messages to token ids, and which of them are trained: the only place that renders a chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

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


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool) -> list[int]:
    if tokenizer.chat_template is None:
        raise EmorgError(
            f"{tokenizer.name_or_path or 'this tokenizer'} has no chat template",
            "use the instruct (chat) version of the model",
        )
    from jinja2 import TemplateError

    try:
        ids: list[int] = tokenizer.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=False,
            add_generation_prompt=generation_prompt,
            **ASKED,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise EmorgError(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} refuses a conversation of {roles}: "
            f"{error}",
            "use conversations that it takes, or mend the template",
        ) from None
    return ids
