from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture
def cell() -> dict[str, Any]:
    """A small valid fleet that a test may change."""
    return {
        "name": "test",
        "links": {"cell": {"kind": "shared", "radio": {"up_bandwidth_mhz": 1}}},
        "devices": [
            {"name": "dev", "count": 4, "gflops_per_s": [1, 9], "memory_gib": 1, "power_w": 5}
        ],
    }


@pytest.fixture
def write_trace(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "trace.csv") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def traces() -> Path:
    """The folder of measured traces of the evaluation data."""
    folder = DATA / "traces"
    if not folder.is_dir():
        pytest.skip(f"the evaluation data is not at {folder}")
    return folder
