import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune import records
from airtune.errors import CheckpointError, RunExistsError, StorageError
from airtune.records import DEVICE_COLUMNS, RunWriter, flatten, read_run, write_atomically
from airtune.records import run as run_records
from airtune.records.table import format_rows, header_line, names_in, parse_rows

HEADER = {"name": "test", "seed": 0, "method": {"name": "jcpba"}}


def columns(count=3, **given):
    """Random numbers in every column but the names."""
    rng = np.random.default_rng(count)
    filled = {name: rng.random(count) for name in DEVICE_COLUMNS if name != "round"}
    filled |= {"device": np.arange(count), "name": [f"d{i}" for i in range(count)]}
    filled |= {"status": "ok", "codec": "identity", "upload_codec": "fp16"}
    filled |= {"reason": 'fast, as "it" is', "rank": 8}
    filled |= {"cut": 0, "local_steps": 4, "samples": np.arange(count), "rank_left": 8}
    return filled | given


def write(folder, rounds=3, wall_s=0.1):
    writer = RunWriter.create(folder, HEADER)
    for number in range(rounds):
        measured = {"wall_s": wall_s * number}
        writer.append({"round": number, "loss": 1 / (number + 3), "measured": measured}, columns())
    return writer


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "run")
    return tmp_path / "run"


def test_a_run_reads_back_as_it_was_written(run):
    record = read_run(run)
    assert record.header == {**HEADER, "schema": 1}
    assert [row["round"] for row in record.rounds] == [0, 1, 2]
    assert set(record.rounds[0]) == {"round", "loss", "measured"}
    assert record.devices["round"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert record.devices["reason"][0] == 'fast, as "it" is'
    np.testing.assert_array_equal(record.devices["share"][:3], columns()["share"])
    assert record.results is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=6))
def test_every_float_reads_back_bit_for_bit(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("floats") / "run"
    writer = RunWriter.create(folder, HEADER)
    writer.append({"round": 0, "values": values}, columns(len(values), energy_j=np.array(values)))
    record = read_run(folder)
    np.testing.assert_array_equal(record.devices["energy_j"], np.array(values))
    assert record.rounds[0]["values"] == [v if np.isfinite(v) else None for v in values]


def test_not_a_number_is_null_and_an_empty_cell(tmp_path):
    writer = RunWriter.create(tmp_path / "run", HEADER)
    writer.append({"round": 0, "gap": np.float64("nan")}, columns(1, finish_s=np.nan))
    assert json.loads((tmp_path / "run" / "rounds.jsonl").read_text())["gap"] is None
    assert "nan" not in (tmp_path / "run" / "devices.csv").read_text().lower()
    assert np.isnan(read_run(tmp_path / "run").devices["finish_s"]).all()


def test_a_text_never_breaks_its_row(tmp_path):
    writer = RunWriter.create(tmp_path / "run", HEADER)
    writer.append({"round": 0}, columns(1, reason=["two\nlines,\r\x85 and more"]))
    assert read_run(tmp_path / "run").devices["reason"][0] == "two lines, and more"


def test_wrong_columns_are_refused(tmp_path):
    writer = RunWriter.create(tmp_path / "run", HEADER)
    with pytest.raises(ValueError, match="missing or unknown: energy, energy_j"):
        writer.append(
            {"round": 0}, {"energy" if k == "energy_j" else k: v for k, v in columns().items()}
        )
    with pytest.raises(ValueError, match=r"column share must have shape \(3,\), got \(2,\)"):
        writer.append({"round": 0}, columns(share=np.ones(2)))
    assert read_run(tmp_path / "run").rounds == []


def test_a_run_folder_is_never_written_over(run):
    with pytest.raises(RunExistsError, match=r"already holds run\.json; choose another output"):
        RunWriter.create(run, HEADER)


def test_a_folder_with_other_files_may_hold_a_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    RunWriter.create(tmp_path, HEADER)
    assert read_run(tmp_path).header["name"] == "test"


def test_resume_cuts_what_came_after_the_checkpoint(run, tmp_path):
    whole = [(run / name).read_bytes() for name in ("rounds.jsonl", "devices.csv")]
    writer = RunWriter.resume(run, 1)
    assert len(read_run(run).rounds) == 1
    for number in (1, 2):
        measured = {"wall_s": 0.1 * number}
        writer.append({"round": number, "loss": 1 / (number + 3), "measured": measured}, columns())
    assert [(run / name).read_bytes() for name in ("rounds.jsonl", "devices.csv")] == whole


def test_runs_that_differ_in_wall_time_differ_in_measured_alone(run, tmp_path):
    write(tmp_path / "other", wall_s=7.0)

    def lasting(folder):
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        return [{**json.loads(line), "measured": None} for line in lines]

    assert lasting(run) == lasting(tmp_path / "other")


@pytest.mark.parametrize("torn", ["rounds.jsonl", "devices.csv"])
def test_a_line_torn_by_a_kill_is_ignored_and_repaired(run, torn):
    whole = (run / torn).read_bytes()
    (run / torn).write_bytes(whole + b'{"round": 3, "lo')
    assert len(read_run(run).rounds) == 3
    RunWriter.resume(run, 3)
    assert (run / torn).read_bytes() == whole


def test_a_kill_at_any_byte_leaves_a_readable_run(run):
    lines = (run / "rounds.jsonl").read_bytes()
    for length in range(0, len(lines), 7):
        (run / "rounds.jsonl").write_bytes(lines[:length])
        assert len(read_run(run).rounds) == lines[:length].count(b"\n")


def test_damage_in_rounds_names_file_and_line(run):
    path = run / "rounds.jsonl"
    path.write_text(path.read_text().replace('"loss": 0.25', '"loss": 0.26'))
    with pytest.raises(CheckpointError, match=r"rounds.jsonl, line 2, is damaged: its checksum"):
        read_run(run)
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(CheckpointError, match=r"rounds.jsonl, line 1, is damaged: it is not a"):
        RunWriter.resume(run, 2)


def test_damage_in_devices_names_file_and_lines(run):
    lines = (run / "devices.csv").read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace("ok", "no")
    (run / "devices.csv").write_text("".join(lines))
    message = r"devices.csv is damaged in the 3 lines from line 5 on"
    with pytest.raises(CheckpointError, match=message):
        read_run(run)
    with pytest.raises(CheckpointError, match=message):
        RunWriter.resume(run, 3)
    RunWriter.resume(run, 1)
    assert len(read_run(run).rounds) == 1


def test_fewer_rounds_than_the_checkpoint_are_an_error(run):
    with pytest.raises(CheckpointError, match="holds 3 whole rounds, but the checkpoint was taken"):
        RunWriter.resume(run, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run folder: it holds no run.json"),
        ("{", "run.json is damaged"),
        ("[]", "must hold a JSON object, got list"),
        ("{}", "must name its schema, got None"),
        ('{"schema": 99}', "written with schema 99, this version reads up to 1; install a newer"),
    ],
)
def test_a_header_that_cannot_be_read_says_why(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_run(tmp_path)


def test_an_older_schema_is_upgraded_step_by_step(run, monkeypatch):
    monkeypatch.setattr(run_records, "SCHEMA", 3)
    monkeypatch.setattr(
        run_records,
        "_UPGRADES",
        {
            1: lambda header: {**header, "schema": 2, "fleet": {}},
            2: lambda header: {**header, "schema": 3, "kind": "local"},
        },
    )
    assert read_run(run).header == {**HEADER, "schema": 3, "fleet": {}, "kind": "local"}


def test_a_full_disk_loses_nothing(run, monkeypatch):
    writer = RunWriter.resume(run, 3)
    before = [(run / name).read_bytes() for name in ("rounds.jsonl", "devices.csv")]
    sync = os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("rounds.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"the disk is full, .*rounds\.jsonl was not written"):
        writer.append({"round": 3}, columns())
    assert [(run / name).read_bytes() for name in ("rounds.jsonl", "devices.csv")] == before
    monkeypatch.setattr(os, "fsync", sync)
    writer.append({"round": 3}, columns())
    assert len(read_run(run).rounds) == 4


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written \(not a directory\)"):
        RunWriter.create(tmp_path / "file" / "run", HEADER)


def test_the_end_writes_results_and_a_flat_table(run):
    RunWriter.resume(run, 3).finish({"test": {"loss": 0.5}})
    assert read_run(run).results == {"test": {"loss": 0.5}}
    assert (run / "rounds.csv").read_text().splitlines()[:2] == ["round,loss", f"0,{1 / 3}"]
    RunWriter.resume(run, 2)
    assert read_run(run).results is None


def test_a_validation_that_is_not_there_leaves_empty_cells(tmp_path):
    rows = [{"round": 0, "validation": None}, {"round": 1, "validation": {"loss": 2.0}}]
    records.write_rounds_csv(rows, tmp_path / "rounds.csv")
    assert (tmp_path / "rounds.csv").read_text() == "round,validation.loss\n0,\n1,2.0\n"


def test_flatten_leaves_lists_and_wall_time_out():
    assert flatten({"a": {"b": 1}, "reasons": ["x"], "measured": {"wall_s": 1}}) == {"a.b": 1}


def test_ten_thousand_devices_append_and_read_as_columns(tmp_path):
    writer = RunWriter.create(tmp_path / "run", HEADER)
    told = columns(10_000)
    writer.append({"round": 0}, told)
    devices = read_run(tmp_path / "run").devices
    np.testing.assert_array_equal(devices["peak_bytes"], told["peak_bytes"])
    assert devices["device"].shape == (10_000,)


def test_columns_that_older_runs_lack_are_read_as_not_known():
    later = {"upload_codec", "server_s", "predicted_s", "step_down_bytes", "step_up_bytes"}
    kept = tuple(name for name in DEVICE_COLUMNS if name not in later)
    assert names_in(header_line(kept)) == kept
    found = parse_rows(format_rows(columns() | {"round": 0}, kept), kept)
    assert set(found["upload_codec"]) == {""}
    assert np.isnan(found["server_s"]).all()
    assert np.isfinite(found["upload_s"]).all()
