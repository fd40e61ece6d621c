"""Records of a run: what happened, as plain JSON and CSV that any tool can read.

    run.json      the header, with the schema number; written once
    rounds.jsonl  one line a round; the line is written last and makes the round count
    devices.csv   one row a device and round
    rounds.csv    the same rounds as a flat table; written when the run ends
    result.json   what the run ended with; written when the run ends

Rules. Finite floats are written so that they read back bit for bit. A number that is not finite is
`null` in JSON; in a CSV file NaN is an empty cell. Only the block `measured` of a round holds wall
time, so two runs of one recipe differ in nothing else. A line of `rounds.jsonl` carries a checksum
of itself (without `measured`) and of the rows of `devices.csv` that belong to it. What a killed
process left behind the last whole line is ignored by readers and cut off on resume; damage anywhere
else is an error that names the file and the line. Versions: a folder of an older schema is upgraded
while it is read (`run._UPGRADES`), one of a newer schema is refused.
"""

from __future__ import annotations

from airtune.records.files import held, storage, write_atomically, write_csv
from airtune.records.metric import METRICS, Metric, main_metric, range_fault
from airtune.records.run import (
    SCHEMA,
    Json,
    RunRecord,
    RunWriter,
    amend_header,
    flatten,
    read_rounds,
    read_run,
    write_rounds_csv,
)
from airtune.records.table import DEVICE_COLUMNS, Columns

__all__ = [
    "DEVICE_COLUMNS",
    "METRICS",
    "SCHEMA",
    "Columns",
    "Json",
    "Metric",
    "RunRecord",
    "RunWriter",
    "amend_header",
    "flatten",
    "held",
    "main_metric",
    "range_fault",
    "read_rounds",
    "read_run",
    "storage",
    "write_atomically",
    "write_csv",
    "write_rounds_csv",
]
