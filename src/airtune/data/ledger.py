"""Counts of rows that were left out, cut or changed on their way into a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

LARGE_SHARE = 0.1
"""A kind that concerns more than this share of the rows of a part is a warning."""


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Rows of one part, training or test, by what happened to them; `+` adds two parts.

    A new kind is a field here and a line of `KINDS`.
    """

    read: int = 0
    """Rows of the source, before any was left out."""
    blank: int = 0
    unlabelled: int = 0
    unanswered: int = 0
    unsupported: int = 0
    dropped: int = 0
    truncated: int = 0
    filled: int = 0
    unreadable: int = 0
    respelt: int = 0
    shared: int = 0

    def __add__(self, other: RowCounts) -> RowCounts:
        mine, theirs = asdict(self), asdict(other)
        return RowCounts(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True, slots=True)
class CountKind:
    """How one kind of count is told."""

    said: str
    """What happened, after "3 of 40 rows"."""
    remedy: str
    """What to do about it, said where the share is large."""


UNSUPPORTED = "a turn of a tool, of an unknown role, or without text"
"""What leaves out a conversation, in words."""

KINDS: Mapping[str, CountKind] = {
    "blank": CountKind("left out: no text or image", "fill or remove them"),
    "unlabelled": CountKind("left out: no label", "label or remove them"),
    "unanswered": CountKind(
        "left out: no answer of the assistant to a user", "answer or remove them"
    ),
    "unsupported": CountKind(
        f"left out: {UNSUPPORTED}", "take those turns out of the conversations"
    ),
    "dropped": CountKind(
        "left out: the prompt alone fills data.max_length",
        "raise data.max_length or shorten the prompts",
    ),
    "truncated": CountKind("cut at data.max_length", "raise data.max_length"),
    "filled": CountKind("without a second text, read as empty", "fill or remove them"),
    "unreadable": CountKind(
        "with U+FFFD for half a character, or one that could not be read",
        "fix the encoding of the source texts, and cut them between characters",
    ),
    "respelt": CountKind(
        "labelled with another spelling of a more frequent class", "spell every class one way"
    ),
    "shared": CountKind(
        "are also training rows, so test figures are too good", "remove them from one of the two"
    ),
}
"""Field of `RowCounts` -> how it is told."""


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One sentence of the ledger."""

    text: str
    warns: bool

    @property
    def marked(self) -> str:
        """The sentence, with "warning" before it where it is one."""
        return f"warning: {self.text}" if self.warns else self.text


@dataclass(frozen=True, slots=True)
class DataLedger:
    """The counts of both parts, and what no count can say; `+` adds two ledgers."""

    train: RowCounts = RowCounts()
    """Rows that devices hold, for training and validation."""
    test: RowCounts = RowCounts()
    notes: tuple[str, ...] = ()
    """Sentences, for instance which labels are spelt in two ways."""

    def __add__(self, other: DataLedger) -> DataLedger:
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return DataLedger(self.train + other.train, self.test + other.test, notes)

    def as_document(self) -> dict[str, Any]:
        """Return plain values, as `run.json` holds them under `data.ledger`."""
        return {**asdict(self), "notes": list(self.notes)}

    def totals(self) -> dict[str, int]:
        """Return the figures of `run.json` that are of rows left out or cut, both parts together."""
        both = self.train + self.test
        return {
            "truncated": self.train.truncated,
            "test_truncated": self.test.truncated,
            "dropped": both.dropped,
            "blank": both.blank,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> DataLedger:
        """Return a ledger that `as_document` wrote; kinds that are unknown here are skipped."""
        known = {entry.name for entry in fields(RowCounts)}
        train, test = (
            RowCounts(**{name: count for name, count in document[part].items() if name in known})
            for part in ("train", "test")
        )
        return cls(train, test, tuple(document.get("notes", ())))

    def lines(self) -> tuple[LedgerLine, ...]:
        """Return one sentence for each kind that occurred, then the notes.

        >>> ledger = DataLedger(RowCounts(read=72, dropped=36), RowCounts(read=8, dropped=4))
        >>> print(ledger.lines()[0].text)
        40 of 80 rows left out: the prompt alone fills data.max_length (36 of 72 for training, \
4 of 8 for the test); raise data.max_length or shorten the prompts
        """
        told = (self._line(name, kind) for name, kind in KINDS.items())
        notes = (LedgerLine(note, warns=False) for note in self.notes)
        return (*(line for line in told if line is not None), *notes)

    def _line(self, name: str, kind: CountKind) -> LedgerLine | None:
        train, test = getattr(self.train, name), getattr(self.test, name)
        if not train + test:
            return None
        shares = ((train, self.train.read), (test, self.test.read))
        warns = any(count > LARGE_SHARE * read for count, read in shares)
        remedy = f"; {kind.remedy}" if warns else ""
        if name == "shared":
            return LedgerLine(f"{test} of {self.test.read} test rows {kind.said}{remedy}", warns)
        return LedgerLine(
            f"{train + test} of {self.train.read + self.test.read} rows {kind.said} ({train} of "
            f"{self.train.read} for training, {test} of {self.test.read} for the test){remedy}",
            warns,
        )


def recorded_lines(header: Mapping[str, Any]) -> tuple[LedgerLine, ...]:
    """Return the sentences of a run's header; none where an older one has no ledger."""
    document = (header.get("data") or {}).get("ledger")
    return DataLedger.from_document(document).lines() if document else ()
