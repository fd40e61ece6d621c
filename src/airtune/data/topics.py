"""Short texts on eight topics, made on the fly for classification.

A text has two or three sentences. Most words are of its topic, one sentence in six is of another
one and some sentences say nothing, so that a good classifier comes close to 100 % but not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The words of one topic."""

    people: tuple[str, ...]
    things: tuple[str, ...]
    actions: tuple[str, ...]
    """Verbs in the present tense that take a thing: 'the cook stirs the soup'."""
    places: tuple[str, ...]


LEXICONS: Mapping[str, Lexicon] = {
    "cooking": Lexicon(
        ("cook", "baker", "chef"), ("soup", "bread", "sauce", "onion", "oven"),
        ("stirs", "bakes", "salts", "tastes"), ("kitchen", "bakery", "restaurant")),
    "garden": Lexicon(
        ("gardener", "farmer", "planter"), ("seed", "rose", "hedge", "spade", "lawn"),
        ("waters", "plants", "digs up", "trims"), ("garden", "greenhouse", "orchard")),
    "health": Lexicon(
        ("doctor", "nurse", "patient"), ("pill", "fever", "bandage", "wound", "cough"),
        ("treats", "cures", "examines", "dresses"), ("clinic", "hospital", "ward")),
    "music": Lexicon(
        ("singer", "drummer", "pianist"), ("song", "violin", "melody", "choir", "drum"),
        ("plays", "tunes", "sings", "records"), ("concert hall", "studio", "opera")),
    "sport": Lexicon(
        ("runner", "goalkeeper", "coach"), ("ball", "race", "medal", "match", "team"),
        ("kicks", "wins", "trains", "throws"), ("stadium", "gym", "pitch")),
    "technology": Lexicon(
        ("engineer", "programmer", "hacker"), ("robot", "screen", "code", "network", "chip"),
        ("tests", "installs", "programs", "repairs"), ("lab", "data centre", "workshop")),
    "travel": Lexicon(
        ("tourist", "pilot", "guide"), ("ticket", "suitcase", "passport", "train", "hotel"),
        ("books", "packs", "boards", "checks"), ("airport", "station", "harbour")),
    "weather": Lexicon(
        ("forecaster", "sailor", "observer"), ("storm", "cloud", "rain", "frost", "breeze"),
        ("measures", "expects", "watches", "reports"), ("coast", "valley", "mountain")),
}  # fmt: skip

FILLERS = (
    "It was a long day.",
    "Nobody was surprised.",
    "We talked about it later.",
    "That took an hour.",
    "My brother told me so.",
    "Is that usual?",
)


def topic_text(random: np.random.Generator) -> dict[str, str]:
    """Return one text with the columns text and label (the topic's name).

    >>> row = topic_text(np.random.default_rng(0))
    >>> row["label"] in LEXICONS
    True
    """
    names = tuple(LEXICONS)
    label = names[int(random.integers(len(names)))]
    sentences = [_sentence(random, LEXICONS[label])]
    for _ in range(int(random.integers(1, 3))):
        fate = random.random()
        if fate < 1 / 6:
            sentences.append(_sentence(random, LEXICONS[_one(random, names)]))
        elif fate < 1 / 2:
            sentences.append(_one(random, FILLERS))
        else:
            sentences.append(_sentence(random, LEXICONS[label]))
    random.shuffle(sentences)
    return {"text": " ".join(sentences), "label": label}


def _one(random: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(random.integers(len(words)))]


def _sentence(random: np.random.Generator, words: Lexicon) -> str:
    who, thing = _one(random, words.people), _one(random, words.things)
    action, place = _one(random, words.actions), _one(random, words.places)
    forms = (
        f"The {who} {action} the {thing}.",
        f"In the {place} a {who} {action} one {thing} after another.",
        f"I saw the {thing} at the {place}.",
        f"Ask the {who} about the {thing}.",
        f"Why did the {who} leave the {place}?",
        f"Someone {action} it.",
    )
    return forms[int(random.integers(len(forms)))]
