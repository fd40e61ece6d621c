import re

import numpy as np
import pytest

from airtune.data import answer_of
from airtune.data.arithmetic import TOPICS as PROBLEM_KINDS
from airtune.data.arithmetic import word_problem
from airtune.data.generated import generate
from airtune.data.topics import LEXICONS
from airtune.errors import DataError

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def test_every_step_of_every_problem_is_right():
    random = np.random.default_rng(1)
    for _ in range(500):
        answer = word_problem(random)["answer"]
        steps = STEP.findall(answer)
        for left, sign, right, result in steps:
            value = {
                "+": int(left) + int(right),
                "-": int(left) - int(right),
                "*": int(left) * int(right),
                "/": int(left) / int(right),
            }[sign]
            assert value == int(result)
        assert answer_of(answer) == steps[-1][3]
        assert int(steps[-1][3]) >= 0


def test_same_seed_gives_the_same_rows_and_another_seed_others():
    first = generate("embedded:arithmetic", train=50, test=10, seed=4)[0]
    again = generate("embedded:arithmetic", train=50, test=10, seed=4)[0]
    other = generate("embedded:arithmetic", train=50, test=10, seed=5)[0]
    assert first.columns == again.columns != other.columns


@pytest.mark.parametrize(
    ("source", "key", "kind", "kinds"),
    [
        ("embedded:arithmetic", "question", "topic", set(PROBLEM_KINDS)),
        ("embedded:topics", "text", "label", set(LEXICONS)),
    ],
)
def test_rows_differ_and_cover_every_kind(source, key, kind, kinds):
    train, test = generate(source, train=2000, test=400, seed=0)
    assert len(set(train.texts(key)) | set(test.texts(key))) == 2400
    assert set(train.texts(kind)) == kinds == set(test.texts(kind))


def test_more_rows_than_can_be_made_is_refused(monkeypatch):
    monkeypatch.setattr("airtune.data.generated._ATTEMPTS", 0)
    with pytest.raises(DataError, match="can make 0 different rows, 3 were asked for"):
        generate("embedded:topics", train=2, test=1, seed=0)
