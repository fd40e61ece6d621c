import json

import numpy as np
import pytest

from airtune.errors import DataError
from airtune.recipe import check_recipe
from airtune.run.inspect import inspect_data
from airtune.run.propose import propose_data


def test_images_are_counted_before_a_run_and_not_decoded(tmp_path):
    rows = [{"file_name": f"{n}.png" if n else None, "label": n % 2} for n in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect_data(
        check_recipe({"data": {"source": str(path), "task": "image-classification"}})
    )
    assert (found.labels, found.lengths) == (("0", "1"), None)
    assert found.rows + found.test_rows == 59
    proposal = propose_data(str(path), model="embedded", task=None, fleet="pocket")
    assert proposal.task == "image-classification"
    assert any(line.startswith("1 of 60 rows left out") for line in proposal.lines)


def test_arrays_that_a_run_would_refuse_are_refused_by_init(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(DataError, match="must have an array of labels"):
        propose_data(str(tmp_path / "a.npz"), model="embedded", task=None, fleet="pocket")
