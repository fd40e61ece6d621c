import json
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from airtune.data.ledger import KINDS, DataLedger, RowCounts, recorded_lines

COUNTS = st.builds(RowCounts, **{entry.name: st.integers(0, 99) for entry in fields(RowCounts)})
LEDGERS = st.builds(DataLedger, COUNTS, COUNTS, st.lists(st.text(), max_size=2).map(tuple))


@given(LEDGERS)
def test_a_ledger_comes_back_from_its_document(ledger):
    assert DataLedger.from_document(json.loads(json.dumps(ledger.as_document()))) == ledger


def test_ledgers_add_field_by_field_and_keep_a_note_once():
    one = DataLedger(RowCounts(read=3, blank=1), RowCounts(read=1), ("a",))
    both = one + DataLedger(RowCounts(read=4), RowCounts(read=2, shared=2), ("a", "b"))
    assert both == DataLedger(RowCounts(read=7, blank=1), RowCounts(read=3, shared=2), ("a", "b"))


def test_every_kind_that_occurs_is_told_and_no_other():
    for name in KINDS:
        (line,) = DataLedger(test=RowCounts(**{"read": 40, name: 3})).lines()
        assert line.text.startswith("3 of 40")
    assert DataLedger(RowCounts(read=40), RowCounts(read=40)).lines() == ()


def test_more_than_a_tenth_of_one_part_is_a_warning_with_a_remedy():
    few = DataLedger(RowCounts(read=100, dropped=10)).lines()[0]
    many = DataLedger(RowCounts(read=100, dropped=1), RowCounts(read=10, dropped=2)).lines()[0]
    assert (few.warns, many.warns) == (False, True)
    assert many.marked.startswith("warning: 3 of 110 rows left out")
    assert many.text.endswith("raise data.max_length or shorten the prompts")


def test_a_header_without_a_ledger_has_no_lines():
    assert recorded_lines({"data": {"truncated": 3}}) == recorded_lines({}) == ()
