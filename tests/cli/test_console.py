"""Tables fit the screen: sentences are broken, numbers and names are not."""

import pytest

from airtune.cli.console import print_line, print_note, print_table

ROWS = [
    [
        f"runs/2026-01-0{day}_10-00-00-größer",
        "1.5 MiB of 2.5 MiB",
        "a sentence of words " * 5,
        *(f"{day}00.5 ms",) * 6,
    ]
    for day in range(1, 4)
]


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_a_table_fits_the_screen_and_breaks_neither_names_nor_numbers(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("", ["folder", "memory", "what", *"abcdef"], ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in ROWS:
        assert row[0] in text
        assert "1.5 MiB of 2.5 MiB" in text
        assert text.count(row[3]) == 6


def test_a_name_wider_than_the_screen_stays_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table("", ["folder", "rounds"], [["x" * 60, "3"]])
    assert "x" * 60 in capsys.readouterr().out


def test_what_looks_like_the_code_of_an_emoji_stays_as_it_is(capsys):
    said = "./mine.py:Nine: no class"
    print_line(said)
    print_note(said)
    print_table("", ["name"], [[said]])
    out, err = capsys.readouterr()
    assert [line.strip() for line in (out + err).splitlines() if "mine" in line] == [said] * 3
