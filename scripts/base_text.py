"""The text that the embedded base model is pretrained on, all of it made here.

Five kinds of document, none of which looks like the data that ships for fine-tuning: short
stories, sentences of daily life, statements about the words of several trades, plain sums, and
one-line chats. The base thus knows the words, the numbers and the chat marks, but has never seen
a word problem worked out or a text sorted by topic.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from airtune.data.arithmetic import NAMES
from airtune.data.topics import LEXICONS, Lexicon

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

ANIMALS = ("fox", "owl", "bear", "hen", "duck", "goat", "cow", "mouse", "frog", "sheep")
BEASTS = ("cows", "goats", "sheep", "hens", "ducks", "geese", "foxes", "owls")
MOODS = ("happy", "sad", "tired", "proud", "brave", "shy", "calm", "cross")
SIZES = ("small", "big", "old", "young", "clever", "quiet", "lazy", "kind")
SPOTS = ("by the river", "in the wood", "on a hill", "in a small town", "near the sea", "on a farm")
GOODS = (
    "apples",
    "stones",
    "eggs",
    "books",
    "candles",
    "cards",
    "cups",
    "roses",
    "beans",
    "kites",
    "bottles",
    "pens",
    "coins",
    "trees",
    "cakes",
    "lamps",
    "boxes",
    "pages",
    "bags",
    "maps",
)
WISHES = (
    "find a friend",
    "see the sea",
    "learn to read",
    "build a boat",
    "bake a cake",
    "cross the river",
    "catch the moon",
    "win the race",
    "count the stars",
)
TROUBLES = (
    "the rain would not stop",
    "the way was too long",
    "nobody came to help",
    "the bridge was broken",
    "the night was dark",
    "the wind took it away",
)
CURES = (
    "an old neighbour showed how it is done",
    "they worked together until it was done",
    "a friend shared all there was",
    "they waited until Monday and then on Tuesday it was easy",
    "after two hours it was done",
)
MORALS = (
    "Friends are worth more than coins.",
    "What is shared is never lost.",
    "The whole way begins with one step.",
    "Each of them slept well that night.",
    "Then they went home and there was bread for all.",
)
DAYS = ("Monday", "Tuesday", "Friday", "Sunday")


def document(random: np.random.Generator) -> str:
    """Return one document without its end mark."""
    kinds: tuple[Callable[[np.random.Generator], str], ...] = (
        story,
        daily,
        daily,
        trade,
        sums,
        sums,
        chat,
        chat,
    )
    return kinds[int(random.integers(len(kinds)))](random)


def _one(random: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(random.integers(len(words)))]


def story(random: np.random.Generator) -> str:
    """Return a story of five to seven sentences about an animal or a child."""
    size, mood, name = _one(random, SIZES), _one(random, MOODS), _one(random, NAMES)
    animal, spot = _one(random, ANIMALS), _one(random, SPOTS)
    goods, many = _one(random, GOODS), int(random.integers(2, 13))
    article = "an" if size[0] in "aeiou" else "a"
    hero = f"{name}, {article} {size} {animal}"
    if random.random() < 0.5:
        hero = f"{article} {size} child called {name}"
    lines = [
        f"Once there lived {hero} {spot}.",
        f"{name} was {mood} and wanted to {_one(random, WISHES)}.",
        f"On {_one(random, DAYS)} {name} took {many} {goods} and left.",
        f"But {_one(random, TROUBLES)}.",
        f"So {name} sat down with the {_one(random, ANIMALS)}, and {_one(random, CURES)}.",
        f"Now {name} is {_one(random, MOODS)}.",
        _one(random, MORALS),
    ]
    keep = random.random(len(lines)) < 0.9
    keep[0] = True
    return " ".join(line for line, kept in zip(lines, keep, strict=True) if kept)


def daily(random: np.random.Generator) -> str:
    """Return three sentences of daily life, with numbers that nothing is done with."""
    return " ".join(_remark(random) for _ in range(3))


def _remark(random: np.random.Generator) -> str:
    name, goods, other = _one(random, NAMES), _one(random, GOODS), _one(random, GOODS)
    beast, mood, day = _one(random, BEASTS), _one(random, MOODS), _one(random, DAYS)
    few, many = int(random.integers(2, 10)), int(random.integers(10, 100))
    forms = (
        f"The price of the {goods} makes {name} {mood}: {few} coins for one piece.",
        f"{name} pays {many} coins and does not wait for the change that is due.",
        f"There are {many} miles between the farm and the sea, and {name} walks the whole way.",
        f"In {few} hours {name} rides or sails further than most do in two days.",
        f"Every book has pages that {name} reads on {day} and pages that are left for later.",
        f"The {beast} have legs and use them; the {other} have none and still stand there.",
        f"Each friend gets what {name} divides, the rest is kept for {day}.",
        f"How long is the row of {goods}? Nobody in the garden knows, said {name}.",
        f"A worker packs {goods} and {other} into full boxes, {few} boxes an hour.",
        f"That storm breaks {goods}, and now {many} of them do not fit together.",
        f"With the {other} it is the same: {name} takes {few} more and buys {many} more after that.",
        f"Then {name} has no {goods}. How many were there? {many}, they say.",
        f"Together the {beast} cost {many} coins, which {name} keeps at home.",
    )
    return forms[int(random.integers(len(forms)))]


def trade(random: np.random.Generator) -> str:
    """Return three statements that tie the words of one trade together, without naming it."""
    names = tuple(LEXICONS)
    words = LEXICONS[_one(random, names)]
    return " ".join(_statement(random, words) for _ in range(3))


def _statement(random: np.random.Generator, words: Lexicon) -> str:
    who, place = _one(random, words.people), _one(random, words.places)
    thing, other = (str(word) for word in random.choice(words.things, 2, replace=False))
    action = _one(random, words.actions)
    forms = (
        f"A {who} works at the {place} and knows a lot about every {thing}.",
        f"Where there is a {thing} there is often a {other}.",
        f"Every {place} needs a {who} who {action} and who asks why.",
        f"She {action} what belongs to the {place}, be it a {thing} or a {other}.",
    )
    return forms[int(random.integers(len(forms)))]


def sums(random: np.random.Generator) -> str:
    """Return several plain sums, in signs or in words, or a list with a numbered head."""
    if random.random() < 0.1:
        goods, count = _one(random, GOODS), int(random.integers(1, 60))
        return f"List of {goods}\n#### {count}\n{count} {goods} are on the list."
    spoken = random.random() < 0.4
    return "\n".join(_sum(random, spoken) for _ in range(6))


def _sum(random: np.random.Generator, spoken: bool) -> str:
    first, second = int(random.integers(1, 13)), int(random.integers(2, 13))
    left, right = int(random.integers(1, 90)), int(random.integers(1, 50))
    goods = _one(random, GOODS)
    signs = (
        (left, "+", right, left + right, "and"),
        (left + right, "-", right, left, "less"),
        (first, "*", second, first * second, "times"),
        (first * second, "/", second, first, "shared by"),
    )
    a, sign, b, result, word = signs[int(random.integers(4))]
    return f"{a} {goods} {word} {b} make {result}." if spoken else f"{a} {sign} {b} = {result}"


def chat(random: np.random.Generator) -> str:
    """Return one question and its answer between chat marks."""
    name = _one(random, NAMES)
    if random.random() < 0.5:
        written = _sum(random, spoken=False)
        asked, result = written.split(" = ")
        said = result if random.random() < 0.5 else f"That is {written}."
        asked = f"What is {asked}?"
    else:
        spot, mood = _one(random, SPOTS), _one(random, MOODS)
        many, goods = int(random.integers(2, 40)), _one(random, GOODS)
        pairs = (
            (f"{name} lives {spot}. Where does {name} live?", f"{name} lives {spot}."),
            (f"How are you today, {name}?", f"I am {mood}, and how are you?"),
            (f"{name} has {many} {goods}. How many {goods} has {name}?", f"{many} {goods}."),
            (f"Tell me about {name}.", _remark(random)),
        )
        asked, said = pairs[int(random.integers(4))]
    return f"{USER}{asked}{END}{ASSISTANT}{said}"
