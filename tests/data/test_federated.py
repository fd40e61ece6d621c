import copy

import numpy as np
import pytest

from airtune.data import TOPICS, DataSpec, answer_of, load_federated
from airtune.errors import DataError
from airtune.model.batch import IGNORED

QUICK = {"limit": 120, "test_limit": 20}


def tokens_of(data):
    """All tokens of all devices, as a list of lists in the order they lie."""
    return [
        row.tolist()
        for held in data.devices
        for part in (held.train, held.validation)
        for row in part.tokens
    ]


def test_embedded_words_problems_reach_every_device(tokenizer):
    data = load_federated(DataSpec(**QUICK), tokenizer=tokenizer, devices=6, seed=0)
    assert [len(held.train) + len(held.validation) for held in data.devices] == [20] * 6
    assert [len(held.validation) for held in data.devices] == [2] * 6
    assert len(data.test) == len(data.test_prompts) == 20
    assert data.labels == ()
    assert data.counts["truncated"] == data.counts["dropped"] == data.counts["blank"] == 0


def test_test_prompt_is_followed_by_a_completion_with_its_answer(tokenizer):
    data = load_federated(DataSpec(**QUICK), tokenizer=tokenizer, devices=2, seed=0)
    for (prompt, answer), tokens, target in zip(
        data.test_prompts, data.test.tokens, data.test.targets, strict=True
    ):
        assert np.array_equal(prompt, tokens[: len(prompt)])
        assert np.all(target[: len(prompt)] == IGNORED)
        completion = tokenizer.decode(tokens[len(prompt) :], skip_special_tokens=True)
        assert answer_of(completion) == answer


def test_same_seed_same_tokens_and_other_seed_others(tokenizer):
    spec = DataSpec(source=TOPICS, task="classification", partition="dirichlet", **QUICK)
    one, two, other = (
        load_federated(spec, tokenizer=tokenizer, devices=5, seed=seed) for seed in (1, 1, 2)
    )
    assert tokens_of(one) == tokens_of(two) != tokens_of(other)
    assert one.counts == two.counts


def test_topics_partition_by_label_and_keep_the_map(tokenizer):
    spec = DataSpec(source=TOPICS, task="classification", partition="dirichlet", alpha=0.1)
    data = load_federated(spec, tokenizer=tokenizer, devices=8, seed=0)
    assert data.labels == tuple(sorted(data.labels))
    assert len(data.labels) == 8
    spread = np.array(data.counts["device_groups"])
    assert spread.sum() == data.counts["rows"] == 2000
    assert np.all(spread.sum(1) == data.counts["device_rows"])
    assert float((spread.max(1) / spread.sum(1)).mean()) > 0.4
    for held, mix in zip(data.devices, spread, strict=True):
        classes = np.concatenate([held.train.targets, held.validation.targets])
        assert np.bincount(classes, minlength=8).tolist() == mix.tolist()


def test_no_test_set_means_a_share_of_the_rows(write, questions, plain_tokenizer):
    spec = DataSpec(source=str(write("qa.jsonl", questions)), test_share=0.2)
    data = load_federated(spec, tokenizer=plain_tokenizer, devices=3, seed=0)
    assert (data.counts["rows"], data.counts["test_rows"]) == (24, 6)
    test = {tuple(row.tolist()) for row in data.test.tokens}
    assert not test & {tuple(row) for row in tokens_of(data)}


def test_test_file_is_used_and_limited(write, questions, plain_tokenizer):
    spec = DataSpec(
        source=str(write("a.jsonl", questions)),
        limit=12,
        test_limit=4,
        test=str(write("b.jsonl", questions)),
    )
    data = load_federated(spec, tokenizer=plain_tokenizer, devices=2, seed=0)
    assert (data.counts["rows"], data.counts["test_rows"]) == (12, 4)


def test_folder_brings_its_test_file(write, tmp_path, questions, plain_tokenizer):
    write("train.jsonl", questions[:20])
    write("test.jsonl", questions[20:])
    data = load_federated(
        DataSpec(source=str(tmp_path)), tokenizer=plain_tokenizer, devices=2, seed=0
    )
    assert (data.counts["rows"], data.counts["test_rows"]) == (20, 10)


def test_blank_rows_and_rows_without_room_are_left_out_and_counted(write, plain_tokenizer):
    rows = [{"prompt": "Why?", "completion": "So."}] * 20
    rows += [{"prompt": "Why?", "completion": " "}, {"prompt": "why " * 90, "completion": "So."}]
    spec = DataSpec(
        source=str(write("a.jsonl", rows)), test=str(write("b.jsonl", rows[:2])), max_length=32
    )
    data = load_federated(spec, tokenizer=plain_tokenizer, devices=2, seed=0)
    counts = (data.counts["rows"], data.counts["blank"], data.counts["dropped"])
    assert counts == (20, 1, 1)


def test_cut_texts_are_counted_over_devices(write, plain_tokenizer):
    rows = [{"text": "word " * (60 if n % 4 == 0 else 2)} for n in range(40)]
    path = str(write("a.jsonl", rows))
    spec = DataSpec(source=path, test=path, max_length=16)
    data = load_federated(spec, tokenizer=plain_tokenizer, devices=4, seed=0)
    held = sum(part.truncated for d in data.devices for part in (d.train, d.validation))
    assert held == data.counts["truncated"] == data.test.truncated == 10


def test_packing_shortens_training_and_leaves_validation(tokenizer):
    spec = DataSpec(packing=True, **QUICK)
    data = load_federated(spec, tokenizer=tokenizer, devices=2, seed=0)
    assert len(data.devices[0].train) < 54 / 1.5
    assert len(data.devices[0].validation) == 6


def test_context_follows_the_prompt_where_there_is_one(write, plain_tokenizer):
    rows = [
        {"instruction": "Sum", "input": "1, 2", "output": "3"},
        {"instruction": "Sum", "input": "", "output": "0"},
    ] * 5
    path = str(write("a.jsonl", rows))
    data = load_federated(
        DataSpec(source=path, test=path), tokenizer=plain_tokenizer, devices=1, seed=0
    )
    assert plain_tokenizer.decode(data.test.tokens[0]) == "Sum\n\n1, 2\n3<|end|>"
    assert plain_tokenizer.decode(data.test.tokens[1]) == "Sum\n0<|end|>"


def test_no_held_out_share_leaves_validation_empty(tokenizer):
    data = load_federated(DataSpec(held_out=0.0, **QUICK), tokenizer=tokenizer, devices=3, seed=0)
    assert [len(held.validation) for held in data.devices] == [0, 0, 0]


@pytest.mark.parametrize("clusters", ["length", "first-word"])
def test_unlabelled_text_is_partitioned_by_cluster(write, plain_tokenizer, clusters):
    rows = [{"text": f"{('Why', 'How', 'Who')[n % 3]} {'x ' * (n % 7 + 1)}"} for n in range(90)]
    path = str(write("a.jsonl", rows))
    spec = DataSpec(source=path, test=path, partition="dirichlet", alpha=0.1, clusters=clusters)
    data = load_federated(spec, tokenizer=plain_tokenizer, devices=4, seed=0)
    assert sum(map(sum, data.counts["device_groups"])) == 90
    assert data.counts["groups"][0] == ("how" if clusters == "first-word" else "length 0")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": [3]}] * 5,
            r"'completion' must be text: .*a.jsonl:2 has \[3\] \(list\), .*a.jsonl:4 has",
        ),
        ([{"prompt": "a", "completion": [3]}] * 9, r"a.jsonl:1 has \[3\].*and 4 more"),
        ([{"prompt": "a", "completion": ""}] * 5, "is blank in prompt or completion"),
        ([{"prompt": "a", "completion": "b"}] * 5, "empty partition: 5 rows"),
        ([{"prompt": "a " * 99, "completion": "b"}] * 5, "raise `data.max_length`"),
    ],
)
def test_bad_rows_are_named(write, plain_tokenizer, rows, message):
    path = str(write("a.jsonl", rows))
    spec = DataSpec(source=path, test=path, max_length=40)
    with pytest.raises(DataError, match=message):
        load_federated(spec, tokenizer=plain_tokenizer, devices=6, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "nowhere/at/all"}, "no such file|no known kind"),
        ({"source": "./nothing.jsonl"}, r"no such file: /.*/nothing\.jsonl"),
    ],
)
def test_missing_path_is_never_taken_for_a_hub_id(plain_tokenizer, settings, message):
    with pytest.raises(DataError, match=message):
        load_federated(DataSpec(**settings), tokenizer=plain_tokenizer, devices=1, seed=0)


def test_split_of_a_plain_file_is_refused(write, questions, plain_tokenizer):
    spec = DataSpec(source=str(write("a.jsonl", questions)), test_split="test")
    with pytest.raises(DataError, match=r"has no splits, got test_split 'test'.*data\.test"):
        load_federated(spec, tokenizer=plain_tokenizer, devices=1, seed=0)


def test_share_that_rounds_to_nothing_is_refused(write, questions, plain_tokenizer):
    spec = DataSpec(source=str(write("a.jsonl", questions)), test_share=0.01)
    with pytest.raises(DataError, match=r"0\.01 of its 30 rows is 0"):
        load_federated(spec, tokenizer=plain_tokenizer, devices=1, seed=0)


@pytest.mark.parametrize(("limit", "count"), [(4, 140), (500, 0)])
def test_texts_longer_than_the_tokenizer_says_are_read_and_told(plain_tokenizer, limit, count):
    tokenizer = copy.deepcopy(plain_tokenizer)
    tokenizer.model_max_length = limit
    data = load_federated(DataSpec(**QUICK), tokenizer=tokenizer, devices=2, seed=0)
    told = [note for note in data.ledger.notes if "model_max_length" in note]
    assert [note.split()[0] for note in told] == [str(count)] * bool(count)
    assert max(map(len, data.test.tokens)) > 4
