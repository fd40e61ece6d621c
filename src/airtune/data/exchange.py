"""How a conversation becomes one text: what the caller sends, what is answered, what ends it.

What a caller sends is the conversation so far with the template's opening of an answer. Scored is
everything after it, up to the mark that the template writes behind an answer; where it writes none,
the tokenizer's end mark is added. A think block that the template puts before an answer is part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from airtune.data.conversation import ANSWERS, Message, is_answer
from airtune.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "{prompt}\n{completion}"
"""The template where neither the recipe nor the tokenizer has one."""

Origin = Literal["recipe", "tokenizer", "default"]
"""Who a template is from."""

_DATE = datetime(2024, 7, 26)
"""Some chat templates write the day; a fixed one keeps runs repeatable."""
_CLOCK = "strftime_now"
_FIXED_CLOCK = (
    f"{{% macro {_CLOCK}(format) %}}{{{{ format"
    + "".join(f"|replace('%{part}', '{_DATE.strftime('%' + part)}')" for part in "aAbBdHIjmMpSyY")
    + " }}{% endmacro %}"
)
"""What a template that asks the clock is given instead; a renderer takes no functions."""

_ANSWER = "completion"
_WAY_OUT = f"set `data.template`, for instance {PLAIN!r}, or take a model with another template"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Texts to tokenise."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]
    """Character at which the last answer of a text begins; it ends with the text."""
    special: bool
    """The tokenizer adds its own marks (beginning of text); False where the template wrote them."""
    end: bool
    """The end mark is still to be added."""
    earlier: tuple[tuple[tuple[int, int], ...], ...] = ()
    """First and last + 1 character of every earlier answer that is scored, a row each."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A chat template and the mark that it writes behind an answer."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    mark: str
    """"" = it writes none, and the end mark is added."""

    def write(
        self, conversations: Sequence[Sequence[Message]], place: Callable[[int], str] = str
    ) -> Rendered:
        """Write conversations, each ending with an answer.

        Args:
            conversations: messages with role and content.
            place: says where a row is from, for messages.

        Raises:
            DataError: if the template refuses a conversation, changes an answer, or opens an answer
                otherwise than it writes one.
        """
        rows = [self._row(row, messages, place) for row, messages in enumerate(conversations)]
        return Rendered(
            texts=tuple(text for text, _ in rows),
            starts=tuple(spans[-1][0] for _, spans in rows),
            special=False,
            end=not self.mark,
            earlier=tuple(spans[:-1] for _, spans in rows),
        )

    def sent(self, messages: Sequence[Message]) -> str:
        """Return what a caller sends to have these messages answered."""
        return _apply(self.tokenizer, self.template, messages, opens=True)

    def _row(
        self, row: int, messages: Sequence[Message], place: Callable[[int], str]
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        try:
            return self._spans(messages)
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses the conversation at {place(row)}: {error}; repair it, or "
                f"{_WAY_OUT}"
            ) from error
        except DataError as error:
            raise DataError(f"{error} (at {place(row)})") from error

    def _spans(self, messages: Sequence[Message]) -> tuple[str, tuple[tuple[int, int], ...]]:
        """Return the text up to the end of the last answer, and where its answers are."""
        answers = _answers(messages)
        whole = _apply(self.tokenizer, self.template, messages, opens=False)
        spans = []
        for index in answers:
            is_last = index == answers[-1]
            until = messages[: index + 1]
            text = whole if is_last else _apply(self.tokenizer, self.template, until, opens=False)
            sent = self.sent(messages[:index])
            end = text.rfind(self.mark) + len(self.mark) if self.mark else len(text)
            # an earlier answer that the template writes otherwise later on is not what is asked for
            if text.startswith(sent) and whole[:end] == text[:end]:
                spans.append((len(sent), end))
            elif is_last:
                raise DataError(_unlike(sent, text))
        start, end = spans[-1]
        _check_kept(messages[answers[-1]]["content"], whole[start:end])
        return whole[:end], tuple(spans)


def settle_exchange(tokenizer: PreTrainedTokenizerBase, asked: str | None) -> Exchange | None:
    """Return how conversations are written; None where the recipe's or the plain template is used.

    Args:
        tokenizer: of the model.
        asked: `data.template`.

    Raises:
        RecipeError: if a template is asked for that the tokenizer has not, or one of several must be.
        DataError: if the chat template refuses an ordinary conversation.
    """
    origin, template = chosen_template(asked, tokenizer.chat_template)
    if origin != "tokenizer":
        return None
    return Exchange(tokenizer, template, _mark(tokenizer, template))


def settle_end_(tokenizer: PreTrainedTokenizerBase, asked: str | None) -> None:
    """Make what ends an answer the tokenizer's end mark, and the template used its default.

    Args:
        tokenizer: of the model; changed.
        asked: `data.template`.

    Raises:
        RecipeError: as `settle_exchange`.
        DataError: likewise.
    """
    exchange = settle_exchange(tokenizer, asked)
    if exchange is None:
        return
    if exchange.mark:
        tokenizer.eos_token = exchange.mark
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = {**tokenizer.chat_template, "default": exchange.template}


def chosen_template(asked: str | None, chat: Any) -> tuple[Origin, Any]:
    """Return which template is used, and whose it is.

    Args:
        asked: the recipe's, a text or the name of one of the tokenizer's; None = it has none.
        chat: the tokenizer's chat template or several by name; None = it has none.

    Raises:
        RecipeError: if a name is not there, or one of several must be chosen.

    >>> chosen_template(None, None)[0], chosen_template("{prompt} = {completion}", "chat")[0]
    ('default', 'recipe')
    >>> chosen_template("rag", {"rag": "one", "default": "two"})
    ('tokenizer', 'one')
    """
    if asked is not None and "{prompt}" in asked:
        return "recipe", asked
    several = chat if isinstance(chat, dict) else {"default": chat} if chat else {}
    if asked is None and not several:
        return "default", PLAIN
    name = asked or ("default" if len(several) > 1 else next(iter(several)))
    if name not in several:
        has = ", ".join(sorted(several)) or "none"
        raise RecipeError(
            f"data.template must name one of the tokenizer's chat templates ({has}) or be a text "
            f"with {{prompt}}, got {asked!r}"
        )
    return "tokenizer", several[name]


def _answers(messages: Sequence[Message]) -> list[int]:
    """Return which messages are answers: the assistant's that follow something and have text."""
    return [
        index
        for index, message in enumerate(messages)
        if is_answer(message) and any(before["role"] == "user" for before in messages[:index])
    ]


def _mark(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return the first mark, a token of its own, that a template writes behind an answer."""
    ask = [{"role": "user", "content": "prompt"}, {"role": ANSWERS, "content": _ANSWER}]
    try:
        text = _apply(tokenizer, template, ask, opens=False)
    except TemplateError as refusal:
        try:
            ask = [{"role": "system", "content": "system"}, *ask]
            text = _apply(tokenizer, template, ask, opens=False)
        except TemplateError:
            raise DataError(
                f"the model's chat template refuses an ordinary conversation: {refusal}; {_WAY_OUT}"
            ) from refusal
    tail = text[text.rfind(_ANSWER) + len(_ANSWER) :] if _ANSWER in text else ""
    marks = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    found = [mark for mark in marks if mark.strip() and mark in tail]
    return min(found, key=lambda mark: (tail.index(mark), -len(mark)), default="")


def _apply(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Message], *, opens: bool
) -> str:
    clock = _FIXED_CLOCK if _CLOCK in template else ""
    try:
        written = tokenizer.apply_chat_template(
            list(messages),
            chat_template=clock + template,
            tokenize=False,
            add_generation_prompt=opens,
            date_string=_DATE.strftime("%d %b %Y"),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise TemplateError(str(error)) from error
    return str(written)


def _unlike(sent: str, text: str) -> str:
    """Return a sentence on a template that opens an answer in one way and writes it in another."""
    same = next((n for n, (a, b) in enumerate(zip(sent, text, strict=False)) if a != b), len(text))
    return (
        f"the chat template opens an answer with {sent[same:][:40]!r}, but writes "
        f"{text[same:][:40]!r} there in a finished conversation, so what is learned would not be "
        f"what is asked for; {_WAY_OUT}"
    )


def _check_kept(content: str, written: str) -> None:
    """Refuse an answer that is not written as it is; what it thinks may be set apart."""
    said = re.sub(r"(?s)^.*</think>", "", content).strip()
    if said not in written:
        raise DataError(f"the chat template changes the completion {content[:40]!r}; {_WAY_OUT}")
