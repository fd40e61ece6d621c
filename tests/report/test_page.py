import json
import re
import subprocess
import sys

import pytest

from airtune.errors import StorageError
from airtune.report import load_study, summarise, write_report
from airtune.report.curves import quality_chart


def test_a_run_gets_its_page_tables_and_pictures(build_run, tmp_path):
    page = write_report([build_run()], tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html",
        "rounds.csv",
        "devices.csv",
        "quality-vs-time.svg",
        "quality-vs-bytes.svg",
    }


def test_a_page_inside_its_run_folder_leaves_the_records_alone(build_run):
    folder = build_run()
    before = (folder / "devices.csv").read_bytes()
    assert write_report([folder], folder / "report.html") == folder / "report.html"
    assert (folder / "devices.csv").read_bytes() == before


def test_a_comparison_gets_a_combined_table(comparison, tmp_path):
    page = write_report([comparison], tmp_path)
    assert (tmp_path / "comparison.csv").exists()
    text = page.read_text()
    for words in ("3 methods compared", "baseline", "reconstructed", "Limits of the result"):
        assert words in text


def test_the_page_asks_no_network(build_run, tmp_path):
    text = write_report([build_run()], tmp_path).read_text()
    outside = text.split("plotly.js v")[0] + text.rsplit("</script>", 2)[1]
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", outside)
    assert "default-src 'none'" in text


def test_no_two_places_of_a_page_share_a_name(build_run, comparison, tmp_path):
    for name, source in {"run": build_run(), "study": comparison}.items():
        text = write_report([source], tmp_path / name).read_text()
        named = re.findall(r'<\w+ [^>]*?id="([^"{]+)"', text)
        assert "records" in named
        assert len(named) == len(set(named))
        asked = set(re.findall(r'(?:getElementById|one)\("([\w-]+)"\)', text))
        assert asked & set(named) >= {"records", "round", "search"}


def test_every_figure_says_its_assumptions(build_run, tmp_path):
    text = write_report([build_run()], tmp_path).read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
    assert len(captions) == 8
    assert all("Fleet cell-10, simulated on a virtual clock" in caption for caption in captions)


@pytest.mark.parametrize("key", ["measurements", "calibration", "split_calibration"])
def test_what_was_measured_first_is_told_once_and_kept_out_of_the_times(build_run, tmp_path, key):
    folder = build_run()
    plain = write_report([folder], tmp_path / "a").read_text()
    assert "calibration excluded" not in plain
    document = json.loads((folder / "run.json").read_text())
    document[key] = {"source": "pruning by 4 short runs; ranks by 3 short runs"}
    (folder / "run.json").write_text(json.dumps(document))
    text = write_report([folder], tmp_path / "b").read_text()
    assert text.count("Calibration: pruning by 4 short runs; its time is not counted") == 1
    assert text.count("Calibration: ranks by 3 short runs; its time is not counted") == 1
    assert "of actual time, calibration excluded." in text


def test_names_from_the_records_stay_text(build_run, tmp_path):
    text = write_report([build_run(prefix="</script><img src=x>")], tmp_path).read_text()
    assert "<img" not in text


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"rounds": 1}, {"ends": False}, {"devices": 1}]
)
def test_runs_at_the_edge_get_a_page_too(build_run, tmp_path, settings):
    assert write_report([build_run(**settings)], tmp_path / "out").exists()


def test_a_control_that_trains_nothing_is_a_level_to_compare_with(small_comparison, tmp_path):
    folder = small_comparison(("jcpba", "fedavg-lora", "untuned"), (0, 1), rounds=6)
    study = load_study([folder])
    level = quality_chart(study, summarise(study), "time").curves[2]
    assert (level.mean == 4.6).all()
    assert level.spent[-1] >= max(run.end_s[-1] for run in study.of("fedavg-lora"))
    text = write_report([folder], tmp_path).read_text()
    assert 'value="untuned' not in text


def test_an_output_that_cannot_be_written_is_an_error(build_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another output folder"):
        write_report([build_run()], tmp_path / "file" / "report.html")


def test_the_report_runs_without_torch():
    code = "import airtune.report, sys; sys.exit(bool({'torch', 'plotly'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_comparison_of_one_run_has_the_files_of_a_comparison(small_comparison, tmp_path):
    write_report([small_comparison(("fedavg-lora",), [0], rounds=3)], tmp_path)
    assert {"comparison.csv", "curves.csv", "comparison.tex"} <= {
        path.name for path in tmp_path.iterdir()
    }
