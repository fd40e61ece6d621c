"""Word problems made on the fly: a question, worked steps, and `#### number`.

Eight topics with their own wording stand in for users who differ, so that a partition by topic
is a real difference between devices. Numbers are small whole numbers and every step is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "Jane",
    "Kofi",
    "Lena",
    "Max",
    "Nia",
    "Omar",
    "Pia",
    "Rosa",
    "Sam",
    "Tom",
    "Uma",
    "Vera",
    "Will",
    "Yara",
    "Zoe",
)

Problem = tuple[str, str, int]
"""Question, worked steps, result."""


class Draw:
    """Draws names and numbers for one problem; the same generator gives the same problem."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def number(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return int(self._random.integers(low, high + 1))

    def one(self, words: tuple[str, ...]) -> str:
        """Return one of the words."""
        return words[int(self._random.integers(len(words)))]

    def name(self) -> str:
        """Return a person's name."""
        return self.one(NAMES)


def _shop(draw: Draw) -> Problem:
    who, thing, extra = draw.name(), draw.one(("pens", "cups", "books")), draw.one(("bag", "map"))
    count, price, other = draw.number(2, 9), draw.number(2, 9), draw.number(2, 20)
    cost = count * price
    question = (
        f"{who} buys {count} {thing} for {price} coins each and a {extra} for {other} coins. "
        f"How many coins does {who} pay?"
    )
    steps = (
        f"The {thing} cost {count} * {price} = {cost} coins.\n"
        f"With the {extra} that is {cost} + {other} = {cost + other} coins."
    )
    return question, steps, cost + other


def _change(draw: Draw) -> Problem:
    who, thing = draw.name(), draw.one(("cakes", "kites", "lamps"))
    count, price = draw.number(2, 8), draw.number(2, 9)
    cost = count * price
    note = cost + draw.number(1, 20)
    question = (
        f"{thing.capitalize()} are sold at {price} coins a piece. {who} takes {count} of them and "
        f"pays with {note} coins. How much change is due?"
    )
    steps = (
        f"The price is {count} * {price} = {cost} coins.\n"
        f"The change is {note} - {cost} = {note - cost} coins."
    )
    return question, steps, note - cost


def _share(draw: Draw) -> Problem:
    who, thing = draw.name(), draw.one(("apples", "cards", "stones"))
    friends, each = draw.number(2, 9), draw.number(2, 9)
    kept = draw.number(1, 12)
    total = friends * each + kept
    question = (
        f"{who} has {total} {thing}, keeps {kept} and divides the rest among {friends} friends. "
        f"How many {thing} does each friend get?"
    )
    steps = (
        f"There are {total} - {kept} = {total - kept} {thing} to divide.\n"
        f"Each friend gets {total - kept} / {friends} = {each} {thing}."
    )
    return question, steps, each


def _farm(draw: Draw) -> Problem:
    first, second = draw.one(("cows", "goats", "sheep")), draw.one(("hens", "ducks", "geese"))
    four, two = draw.number(2, 12), draw.number(2, 12)
    question = f"On a farm live {four} {first} and {two} {second}. How many legs do they have?"
    steps = (
        f"The {first} have {four} * 4 = {four * 4} legs.\n"
        f"The {second} have {two} * 2 = {two * 2} legs.\n"
        f"Together that is {four * 4} + {two * 2} = {four * 4 + two * 2} legs."
    )
    return question, steps, four * 4 + two * 2


def _ride(draw: Draw) -> Problem:
    who, way = draw.name(), draw.one(("rides", "sails", "walks"))
    speed, hours, left = draw.number(3, 12), draw.number(2, 9), draw.number(2, 30)
    done = speed * hours
    question = (
        f"{who} {way} {speed} miles an hour for {hours} hours. Then {left} miles are left. "
        "How long is the whole way in miles?"
    )
    steps = (
        f"In {hours} hours {who} {way} {speed} * {hours} = {done} miles.\n"
        f"The whole way is {done} + {left} = {done + left} miles."
    )
    return question, steps, done + left


def _rows(draw: Draw) -> Problem:
    what = draw.one(("roses", "beans", "trees"))
    rows, each = draw.number(2, 9), draw.number(3, 9)
    lost = draw.number(1, rows * each - 1)
    question = (
        f"A garden has {rows} rows with {each} {what} in every row. A storm breaks {lost} of them. "
        f"How many {what} still stand?"
    )
    steps = (
        f"There were {rows} * {each} = {rows * each} {what}.\n"
        f"Now {rows * each} - {lost} = {rows * each - lost} {what} stand."
    )
    return question, steps, rows * each - lost


def _pages(draw: Draw) -> Problem:
    who = draw.name()
    first, more, left = draw.number(5, 30), draw.number(2, 15), draw.number(5, 40)
    second = first + more
    question = (
        f"{who} reads {first} pages on Monday and {more} pages more on Tuesday. After that {left} "
        "pages are left. How many pages has the book?"
    )
    steps = (
        f"On Tuesday {who} reads {first} + {more} = {second} pages.\n"
        f"In two days that is {first} + {second} = {first + second} pages.\n"
        f"The book has {first + second} + {left} = {first + second + left} pages."
    )
    return question, steps, first + second + left


def _boxes(draw: Draw) -> Problem:
    thing = draw.one(("eggs", "candles", "bottles"))
    full, each, loose = draw.number(2, 9), draw.number(3, 10), draw.number(1, 9)
    total = full * each + loose
    question = (
        f"A worker packs {total} {thing} into boxes of {each}. {loose} {thing} do not fit. "
        "How many boxes are full?"
    )
    steps = (
        f"In boxes are {total} - {loose} = {total - loose} {thing}.\n"
        f"That makes {total - loose} / {each} = {full} boxes."
    )
    return question, steps, full


TOPICS: Mapping[str, Callable[[Draw], Problem]] = {
    "boxes": _boxes,
    "change": _change,
    "farm": _farm,
    "pages": _pages,
    "ride": _ride,
    "rows": _rows,
    "share": _share,
    "shop": _shop,
}


def word_problem(random: np.random.Generator) -> dict[str, str]:
    """Return one problem with the columns question, answer and topic.

    >>> problem = word_problem(np.random.default_rng(3))
    >>> sorted(problem), problem["answer"].splitlines()[-1].startswith("#### ")
    (['answer', 'question', 'topic'], True)
    """
    names = tuple(TOPICS)
    topic = names[int(random.integers(len(names)))]
    question, steps, result = TOPICS[topic](Draw(random))
    return {"question": question, "answer": f"{steps}\n#### {result}", "topic": topic}
