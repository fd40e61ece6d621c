import re
import subprocess
import sys

import pytest

from airtune.data import DataSpec
from airtune.errors import RecipeError


def test_all_faults_are_told_together():
    with pytest.raises(RecipeError) as caught:
        DataSpec(alpha=0.0, held_out=1.0, max_length=1, partition="even", template="no place")
    for part in (
        "alpha must be above 0, got 0",
        "held_out must be in [0, 1), got 1",
        "max_length must be at least 2, got 1",
        "got 'even'",
        "{prompt}",
    ):
        assert part in str(caught.value)


def test_misspelt_role_names_the_nearest():
    with pytest.raises(RecipeError, match="'promt', did you mean 'prompt'"):
        DataSpec(source="a.jsonl", columns={"promt": "q"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "embedded:poems"}, "embedded:topics, embedded:shapes, got 'embedded:poems'"),
        (
            {"source": "a.csv", "task": "classification", "packing": True},
            "packing is for causal-lm",
        ),
        ({"min_rows": 1}, "min_rows must be at least 2 where rows are held out, got 1"),
        ({"source": "a", "test": "b", "test_split": "c"}, "exclude each other"),
        ({"source": "a", "labels": ("x", "x")}, "labels must differ"),
        ({"template": "{completion}{prompt}"}, "must have {prompt} before {completion}"),
        ({"task": "classification"}, "embedded:arithmetic is for causal-lm"),
        ({"test": "test.jsonl"}, "makes its own test rows"),
        ({"source": "a", "columns": {"text": "t", "prompt": "p"}}, "both text and prompt"),
        (
            {
                "source": "a",
                "task": "classification",
                "columns": {"text": "t", "label": "t", "group": "t"},
            },
            "columns name 't' twice",
        ),
        ({"alpha": float("nan")}, "alpha must be above 0, got nan"),
    ],
)
def test_contradiction_is_refused(settings, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        DataSpec(**settings)


def test_embedded_default_needs_no_setting():
    assert DataSpec().source == "embedded:arithmetic"


def test_describing_data_needs_no_torch():
    code = "import sys, airtune.data as d; d.DataSpec(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
