"""From prompt and completion to one text, and where in it the completion begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airtune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "{prompt}\n{completion}"
"""The template where neither the recipe nor the tokenizer has one."""

Origin = Literal["recipe", "tokenizer", "default"]
"""Who a template is from."""

_DATE = "26 Jul 2024"
"""Some chat templates write the day; a fixed one keeps runs repeatable (theirs is this one)."""

_MARK = "completion"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Texts to tokenise."""

    texts: tuple[str, ...]
    starts: tuple[int, ...]
    """Character from which a text is scored."""
    special: bool
    """The tokenizer adds its own marks (beginning of text); False where the template wrote them."""
    end: bool
    """The end mark is still to be added."""


def render(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
) -> Rendered:
    """Write prompts and completions with the template given, the chat template or the plain one.

    Raises:
        DataError: if a chat template changes the completion, so that it cannot be found again.
    """
    origin, text = chosen_template(template, tokenizer.chat_template)
    if origin == "tokenizer":
        return _render_chat(prompts, completions, tokenizer)
    before, after = split_template(text)
    heads = [before.replace("{prompt}", prompt) for prompt in prompts]
    texts = [head + text + after for head, text in zip(heads, completions, strict=True)]
    return Rendered(tuple(texts), tuple(map(len, heads)), special=True, end=True)


def chosen_template(asked: str | None, chat: Any) -> tuple[Origin, Any]:
    """Return which template is used, and whose it is.

    Args:
        asked: the recipe's; None = it has none.
        chat: the tokenizer's chat template; None = it has none.

    >>> chosen_template(None, None)[0], chosen_template("{prompt} = {completion}", "chat")[0]
    ('default', 'recipe')
    """
    if asked is not None:
        return "recipe", asked or PLAIN
    return ("default", PLAIN) if chat is None else ("tokenizer", chat)


def split_template(template: str) -> tuple[str, str]:
    """Return what stands before and after the completion.

    >>> split_template("Q: {prompt} A: {completion}."), split_template("{prompt} = ")
    (('Q: {prompt} A: ', '.'), ('{prompt} = ', ''))
    """
    before, _, after = template.partition("{completion}")
    return before, after


def render_texts(texts: Sequence[str]) -> Rendered:
    """Return plain texts, scored from their first character."""
    return Rendered(tuple(texts), (0,) * len(texts), special=True, end=True)


def _render_chat(
    prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Rendered:
    """Render one exchange a row; what follows the completion is the same in every row."""
    exchanges = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        for prompt, completion in zip(
            ("prompt", *prompts), (_MARK, *completions), strict=True
        )
    ]  # fmt: skip
    sample, *texts = tokenizer.apply_chat_template(exchanges, tokenize=False, date_string=_DATE)
    tail = len(sample) - sample.rfind(_MARK) - len(_MARK)
    starts = [
        _start(text, completion, tail) for text, completion in zip(texts, completions, strict=True)
    ]
    return Rendered(tuple(texts), tuple(starts), special=False, end=False)


def _start(text: str, completion: str, tail: int) -> int:
    """Return where the completion begins; many templates strip the blanks around it."""
    end = len(text) - tail
    for written in (completion, completion.strip()):
        start = end - len(written)
        if text[start:end] == written:
            return start
    raise DataError(
        f"the chat template changes the completion {completion[:40]!r}; set `data.template`, for "
        f"instance {PLAIN!r}"
    )
