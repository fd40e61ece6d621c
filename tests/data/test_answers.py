import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.data import answer_of


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\n#### 18", "18"),
        ("#### 18 eggs", "18"),
        ("#### $2,125.50", "2125.5"),
        ("#### -3.0", "-3"),
        ("#### -0", "0"),
        ("#### +007", "7"),
        ("#### .5", "0.5"),
        ("#### 1\n#### 2", "2"),
        ("#### yes", "yes"),
        ("18", None),
        ("####", None),
        ("####  \n18", None),
    ],
)
def test_answer_is_the_marked_number(text, answer):
    assert answer_of(text) == answer


@given(st.integers(-(10**9), 10**9), st.text(st.characters(exclude_characters="#")))
def test_any_spelling_of_a_whole_number_is_the_same(number, before):
    assert answer_of(f"{before}#### {number:,}") == answer_of(f"#### {number}.00") == str(number)
