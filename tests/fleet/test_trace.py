import csv

import numpy as np
import pytest

from airtune.errors import FleetError
from airtune.fleet.trace import read_trace, tabulate

PLAIN = "time_s,down_mbps\n0,8\n1,0\n4,2\n5,6\n"


def down_at(path, *times):
    table = tabulate([read_trace(path)])
    return (table.at(np.zeros(len(times), int), np.array(times))[1] / 1e6).tolist()


def test_a_value_holds_until_the_next_row_and_over_missing_seconds(write_trace):
    assert down_at(write_trace(PLAIN), 0.0, 0.99, 1.0, 2.5, 3.99, 4.0) == [8, 8, 0, 0, 0, 2]


def test_a_trace_starts_again_after_its_last_row_lasted_a_median_step(write_trace):
    path = write_trace(PLAIN)
    assert read_trace(path).period_s == 6.0
    assert down_at(path, 5.9, 6.0, 7.0, 6e6) == [6, 8, 0, 8]


def test_time_begins_at_zero_whatever_the_first_row_says(write_trace):
    shifted = write_trace("time_s,down_mbps\n100,8\n101,0\n104,2\n105,6\n")
    assert down_at(shifted, 0.0, 4.5) == [8, 2]


def test_several_traces_answer_as_each_alone(write_trace):
    first = read_trace(write_trace(PLAIN, "a.csv"))
    second = read_trace(write_trace("time_s,down_mbps,up_mbps\n0,1,5\n10,3,7\n", "b.csv"))
    table = tabulate([first, second])
    trace, time_s = np.array([1, 0, 1, 1, 0]), np.array([0.0, 4.2, 9.9, 10.0, 11.9])
    up, down = table.at(trace, time_s)
    assert (down / 1e6).tolist() == [1, 2, 1, 3, 6]
    assert (up[trace == 1] / 1e6).tolist() == [5, 5, 7]


def test_a_byte_order_mark_and_blank_lines_do_no_harm(write_trace):
    path = write_trace("\ufefftime_s,down_mbps\n0,8\n\n1,2\n\n")
    assert read_trace(path).down_bps.tolist() == [8e6, 2e6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must start with the row time_s,down_mbps or time_s,down_mbps,up_mbps, got ''"),
        ("t,rate\n0,1\n1,2\n", r"got 't,rate'"),
        ("time_s,down_mbps\n0,1\n", r"needs at least two rows of numbers, got 1"),
        ("time_s,down_mbps\n0,1\n1,x\n", r"line 3: needs 2 numbers, got '1,x'"),
        ("time_s,down_mbps\n0,1\n1,\n", r"line 3: needs 2 numbers, got '1,'"),
        ("time_s,down_mbps\n0,1\n1,2,3\n", r"line 3: needs 2 numbers, got '1,2,3'"),
        ("time_s,down_mbps\n0,1\n1,nan\n", r"line 3: needs 2 numbers, got '1,nan'"),
        ("time_s,down_mbps\n0,1\n1,-2\n", r"line 3: a rate must be at least 0, got -2"),
        ("time_s,down_mbps\n0,1\n\n2,3\n1,2\n", r"line 5: time_s must rise, got 1 after 2; sort"),
        ("time_s,down_mbps\n0,1\n0,2\n", r"line 3: time_s must rise, got"),
        ("time_s,down_mbps\n0,0\n1,0\n", r"never carries a bit: every down_mbps is 0"),
    ],
)
def test_a_malformed_trace_is_refused_with_its_line(write_trace, text, message):
    with pytest.raises(FleetError, match=message):
        read_trace(write_trace(text))


def test_a_missing_trace_is_refused(tmp_path):
    with pytest.raises(FleetError, match=r"nowhere\.csv cannot be read"):
        read_trace(tmp_path / "nowhere.csv")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "noise.csv").write_bytes(b"time_s,down_mbps\n\xff\xfe\x00\n")
    with pytest.raises(FleetError, match=r"noise\.csv cannot be read"):
        read_trace(tmp_path / "noise.csv")


@pytest.mark.data
def test_every_measured_trace_reads_and_agrees_with_its_index(traces):
    with (traces / "INDEX.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    assert index
    for row in index:
        trace = read_trace(traces / row["file"])
        assert trace.down_bps.shape[0] == int(row["rows"])
        assert trace.down_bps.mean() / 1e6 == pytest.approx(float(row["down_mean"]), abs=2e-3)
        assert trace.period_s == pytest.approx(float(row["duration_s"]), abs=2.5)
