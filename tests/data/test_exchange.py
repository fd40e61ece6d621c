"""What is sent, what is answered and what ends it, over templates as models have them."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from airtune.data.conversation import pair, read_conversations
from airtune.data.exchange import chosen_template, settle_end_, settle_exchange
from airtune.data.federated import load_federated
from airtune.data.intake import take_in
from airtune.data.spec import DataSpec
from airtune.data.table import table_from_rows
from airtune.data.template import render, render_conversations
from airtune.data.tokenise import tokenise_causal
from airtune.errors import DataError, RecipeError
from airtune.model.batch import IGNORED, collate

EACH = "{% for m in messages %}"
OPENS = "{% if add_generation_prompt %}"
CHATML = (
    EACH
    + "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}{% endfor %}"
    + OPENS
    + "{{'<|im_start|>assistant\n'}}{% endif %}"
)
OPEN = (
    EACH + "{% if m['role'] == 'user' %}{{'User: ' + m['content'] + '\n'}}{% else %}"
    "{{'Bot: ' + m['content'] + '\n'}}{% endif %}{% endfor %}" + OPENS + "Bot: {% endif %}"
)
INST = (
    "{{ bos_token }}"
    + EACH
    + "{% if m['role'] == 'user' %}{{'[INST] ' + m['content'] + ' [/INST]'}}"
    "{% else %}{{' ' + m['content'] + eos_token}}{% endif %}{% endfor %}"
)
PHI = (
    EACH
    + "{{'<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n'}}{% endfor %}"
    + OPENS
    + "{{'<|assistant|>\n'}}{% else %}{{ eos_token }}{% endif %}"
)
THINKS = (
    EACH + "{{'<|im_start|>' + m['role'] + '\n'}}{% if m['role'] == 'assistant' and loop.last %}"
    "{{'<think>\n\n</think>\n\n'}}{% endif %}{{m['content'] + '<|im_end|>\n'}}{% endfor %}"
    + OPENS
    + "{{'<|im_start|>assistant\n'}}{% endif %}"
)
OPENS_THINKING = CHATML.replace("assistant\n'}}{% endif", "assistant\n<think>\n'}}{% endif")
STRICT = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('say who you are') }}{% endif %}"
    + CHATML
)
ALTERNATES = (
    EACH + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)


@pytest.fixture
def tokenizer_of(tokenizer):
    """A tokenizer with the marks of ChatML and others, whose own end mark is another one."""

    def make(template=None):
        made = PreTrainedTokenizerFast(
            tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
                tokenizer.backend_tokenizer.to_str()
            ),
            eos_token="<|eot|>",
            bos_token="<s>",
            pad_token="<|pad|>",
        )
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        made.chat_template = template
        return made

    return make


TALK = [*pair("red?", "cat"), *pair("blue?", "dog")]


@pytest.mark.parametrize(
    ("template", "mark", "scored"),
    [
        (CHATML, "<|im_end|>", ["cat<|im_end|>", "dog<|im_end|>"]),
        (OPEN, "", [" cat\n", "dog\n<|eot|>"]),
        (INST, "<|eot|>", [" cat<|eot|>", " dog<|eot|>"]),
        (PHI, "<|end|>", ["cat<|end|>", "dog<|end|>"]),
        (THINKS, "<|im_end|>", ["<think>\n\n</think>\n\ndog<|im_end|>"]),
    ],
    ids=["chatml", "open", "inst", "phi", "thinks"],
)
def test_only_answers_and_what_ends_them_are_scored(tokenizer_of, template, mark, scored):
    tokenizer = tokenizer_of(template)
    exchange = settle_exchange(tokenizer, None)
    assert exchange.mark == mark
    rendered = exchange.write([TALK])
    done = tokenise_causal(rendered, tokenizer=tokenizer, max_length=400)
    tokens, targets = done.tokens[0], done.targets[0]
    is_scored = targets != IGNORED
    assert tokenizer.decode(tokens[is_scored]) == "".join(scored)
    assert np.array_equal(tokens[is_scored], targets[is_scored])
    sent = tokenizer(exchange.sent(TALK[:-1]), add_special_tokens=False)["input_ids"]
    assert tokens[: done.prompt[0]].tolist() == sent


def test_a_begin_mark_that_the_template_writes_is_there_once(tokenizer_of):
    tokenizer = tokenizer_of(INST)
    tokens = tokenise_causal(
        render(["red?"], ["cat"], tokenizer=tokenizer, template=None),
        tokenizer=tokenizer,
        max_length=99,
    ).tokens[0]
    assert tokens.tolist().count(tokenizer.bos_token_id) == 1


def test_the_end_mark_is_learned_where_the_same_token_pads(tokenizer_of):
    tokenizer = tokenizer_of(INST)
    tokenizer.pad_token = tokenizer.eos_token
    rendered = render(["red?", "b?"], ["cat and dog", "x"], tokenizer=tokenizer, template=None)
    done = tokenise_causal(rendered, tokenizer=tokenizer, max_length=99)
    batch = collate(done.sequences(np.arange(2)), [0, 1])
    assert (batch.labels == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]


def test_a_cut_answer_gets_no_end_mark(tokenizer_of):
    tokenizer = tokenizer_of(OPEN)
    rendered = render(["red?"], ["cat " * 50], tokenizer=tokenizer, template=None)
    done = tokenise_causal(rendered, tokenizer=tokenizer, max_length=30)
    assert done.truncated[0]
    assert tokenizer.eos_token_id not in done.tokens[0]


def test_a_template_that_opens_an_answer_otherwise_is_refused(tokenizer_of):
    with pytest.raises(DataError, match=r"opens an answer with '<think>.*data\.template.*row 0"):
        settle_exchange(tokenizer_of(OPENS_THINKING), None).write([TALK], lambda row: f"row {row}")


def test_a_refusal_has_the_templates_own_sentence_and_the_row(tokenizer_of):
    system = [{"role": "system", "content": "me"}]
    strict = settle_exchange(tokenizer_of(STRICT), None)
    assert strict.write([system + TALK]).texts[0].endswith("dog<|im_end|>")
    with pytest.raises(DataError, match=r"at row 1: say who you are; .*data\.template"):
        strict.write([system + TALK, TALK], lambda row: f"row {row}")
    with pytest.raises(DataError, match="roles must alternate"):
        settle_exchange(tokenizer_of(ALTERNATES), None).write([[TALK[0], *TALK]])


def test_a_template_that_refuses_everything_is_said_at_once(tokenizer_of):
    with pytest.raises(DataError, match="refuses an ordinary conversation: never"):
        settle_exchange(tokenizer_of("{{ raise_exception('never') }}"), None)


def test_a_template_that_asks_the_clock_is_given_one_day(tokenizer_of):
    clock = "{%- set day = strftime_now('%d %b %Y, %H:%M') %}{{ 'Today: ' + day + '\n' }}"
    rendered = settle_exchange(tokenizer_of(clock + CHATML), None).write([TALK])
    assert rendered.texts[0].startswith("Today: 26 Jul 2024, 00:00\n<|im_start|>user")


def test_one_of_several_templates_is_chosen_by_name(tokenizer_of):
    several = {"rag": INST, "chat": CHATML}
    assert settle_exchange(tokenizer_of(several), "chat").mark == "<|im_end|>"
    for asked in (None, "tools"):
        with pytest.raises(RecipeError, match=r"chat templates \(chat, rag\)"):
            chosen_template(asked, several)
    assert chosen_template(None, {"only": "x"}) == ("tokenizer", "x")
    assert DataSpec(template="rag").template == "rag"
    with pytest.raises(RecipeError, match="got 'rag'"):
        settle_exchange(tokenizer_of(), "rag")


def test_what_ends_an_answer_becomes_the_tokenizers_end_mark(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of({"rag": CHATML, "default": INST})
    settle_end_(tokenizer, "rag")
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.eos_token == "<|im_end|>"
    given = loaded.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert given.endswith("<|im_start|>assistant\n")


def test_plain_templates_take_one_question_and_one_answer(tokenizer_of):
    plain = {"tokenizer": tokenizer_of(), "template": "Q: {prompt} A: {completion}"}
    assert render_conversations([pair("a", "b")], **plain).texts == ("Q: a A: b",)
    with pytest.raises(RecipeError, match="the conversation at 0 has more than"):
        render_conversations([TALK], **plain)


USER, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([USER, GPT], pair("a", "b")),
        ([USER, GPT, USER], pair("a", "b")),
        ([GPT, USER, GPT], [{"role": "assistant", "content": "b"}, *pair("a", "b")]),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}], pair("a", "b")),
        ([USER, GPT, USER, {"from": "gpt", "value": " "}], pair("a", "b")),
        (
            '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
            pair("a", "b"),
        ),
    ],
)
def test_conversations_are_read_as_people_store_them(value, expected):
    read = read_conversations(table_from_rows([{"chat": value}], source="x"), "chat")
    assert read.messages == [expected]
    assert not (read.unanswered | read.unsupported).any()


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "user", "content": [{"type": "image"}]},
    ],
)
def test_turns_that_are_no_text_are_counted_as_unsupported(turn):
    read = read_conversations(table_from_rows([{"chat": [USER, turn, GPT]}], source="x"), "chat")
    assert (read.unsupported.tolist(), read.messages) == ([True], [[]])


def test_an_answer_of_weight_0_is_read_and_not_scored(tokenizer_of):
    shy = {"role": "assistant", "content": "red", "weight": 0}
    asks = {"role": "user", "content": "colour"}
    rows = [[asks, shy, asks, {**shy, "content": "blue", "weight": 1}], [asks, shy]]
    read = read_conversations(table_from_rows([{"chat": row} for row in rows], source="x"), "chat")
    assert read.unanswered.tolist() == [False, True]
    exchange = settle_exchange(tokenizer_of(EACH + "{{ m['content'] }};{% endfor %}"), None)
    written = exchange.write(read.messages[:1])
    [text], [start] = written.texts, written.starts
    assert text == "colour;red;colour;blue;"
    assert (text[start:], written.earlier) == ("blue;", ((),))


def test_what_is_no_conversation_is_refused_by_line():
    table = table_from_rows([{"chat": [USER, GPT]}, {"chat": "hello"}], source="x.jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl:2 has 'hello'"):
        read_conversations(table, "chat")


def test_rows_without_an_answer_are_left_out_and_counted(write):
    good = [{"messages": pair(f"{n}?", "b"), "label": "x"} for n in range(20)]
    bad = [
        {"messages": pair("a", "b")[:1]},
        {"messages": [USER, {"role": "tool", "content": "1"}, GPT]},
        {"messages": []},
    ]
    path = write("chat.jsonl", good + bad)
    found = take_in(DataSpec(source=str(path)), seed=0)
    total = found.ledger.train + found.ledger.test
    assert found.columns == {"messages": "messages"}
    assert (total.read, total.unanswered, total.unsupported) == (23, 2, 1)
    assert len(found.train) + len(found.test) == 20


def test_prompts_and_completions_that_are_messages_are_one_conversation(write):
    ask, say = pair("a", "b")
    rows = [{"prompt": [ask], "completion": [say]} for _ in range(17)]
    rows += [
        {"prompt": [ask], "completion": "b"},
        {"prompt": "a", "completion": [say]},
        {"prompt": [ask], "completion": None},
    ]
    found = take_in(DataSpec(source=str(write("trl.jsonl", rows)), test_share=0.1), seed=0)
    total = found.ledger.train + found.ledger.test
    assert found.columns == {"messages": "prompt"}
    assert (total.read, total.unanswered) == (20, 1)
    assert all(row == [ask, say] for row in found.train.column("prompt"))
    rows[3] = {"prompt": [ask], "completion": 7}
    with pytest.raises(DataError, match=r"trl\.jsonl:4 has 7"):
        take_in(DataSpec(source=str(write("trl.jsonl", rows))), seed=0)


def test_a_text_with_a_token_that_the_embedding_lacks_is_refused_by_line(tokenizer_of, write):
    tokenizer = tokenizer_of(CHATML)
    tokenizer.add_tokens(["<more>"])
    rows = [{"prompt": f"{n}?", "completion": "b"} for n in range(20)]
    spec = DataSpec(source=str(write("a.jsonl", rows)))
    most = {"tokenizer": tokenizer, "devices": 1, "seed": 0, "vocabulary": len(tokenizer) - 1}
    assert "lacks ('<more>')" in load_federated(spec, **most).ledger.notes[0]
    spec = DataSpec(
        source=str(write("b.jsonl", [*rows, {"prompt": "a <more>", "completion": "b"}]))
    )
    with pytest.raises(DataError, match=r"b\.jsonl:21 has the token '<more>'"):
        load_federated(spec, **most)
