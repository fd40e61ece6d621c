"""From prompt and completion, or plain texts, to what is tokenised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from airtune.data.conversation import Message, pair
from airtune.data.exchange import Rendered, chosen_template, settle_exchange
from airtune.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    place: Callable[[int], str] = str,
) -> Rendered:
    """Write prompts and completions with the template given, the chat template or the plain one.

    Raises:
        DataError: if the chat template refuses a pair or changes its completion.
        RecipeError: if the template is not there.
    """
    exchange = settle_exchange(tokenizer, template)
    if exchange is not None:
        return exchange.write(list(map(pair, prompts, completions)), place)
    before, after = split_template(chosen_template(template, None)[1])
    heads = [before.replace("{prompt}", prompt) for prompt in prompts]
    texts = [head + text + after for head, text in zip(heads, completions, strict=True)]
    return Rendered(tuple(texts), tuple(map(len, heads)), special=True, end=True)


def render_conversations(
    conversations: Sequence[Sequence[Message]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    place: Callable[[int], str] = str,
) -> Rendered:
    """Write conversations with the chat template.

    A recipe's own or the plain template has one question and one answer, so a conversation of more
    needs a chat template.

    Raises:
        DataError: if the chat template refuses one.
        RecipeError: if there is no chat template and one has more than a question and an answer.
    """
    exchange = settle_exchange(tokenizer, template)
    if exchange is not None:
        return exchange.write(conversations, place)
    for row, messages in enumerate(conversations):
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise RecipeError(
                f"the conversation at {place(row)} has more than a question and an answer, which "
                "takes a chat template: take a model that has one, and leave data.template out"
            )
    prompts, answers = zip(
        *([message["content"] for message in messages] for messages in conversations), strict=True
    )
    return render(prompts, answers, tokenizer=tokenizer, template=template, place=place)


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
