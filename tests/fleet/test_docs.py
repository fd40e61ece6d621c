import doctest
import re
from pathlib import Path

from airtune.fleet import load_fleet, preset_names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fleet.md"


def test_the_example_of_the_page_runs():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 3
    assert result.failed == 0


def test_the_fleet_file_of_the_page_loads(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "fleet.yaml").write_text(example[1])
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "ucc5g_one.csv").write_text("time_s,down_mbps\n0,1\n1,2\n")
    fleet = load_fleet(tmp_path / "fleet.yaml")
    assert len(fleet) == 8
    assert [spec.name for spec in fleet.specs] == ["cell", "site", "road"]


def test_the_page_describes_every_preset():
    assert all(f"| `{name}` |" in PAGE.read_text() for name in preset_names())
