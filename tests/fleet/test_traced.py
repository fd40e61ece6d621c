import numpy as np
import pytest

from airtune.errors import FleetError
from airtune.fleet import downlink_bps, load_fleet, uplink_bps

RISING = "time_s,down_mbps\n" + "".join(f"{second},{second + 1}\n" for second in range(50))
OUTAGE = "time_s,down_mbps,up_mbps\n0,8,2\n1,0,0\n2,4,1\n"


@pytest.fixture
def traced(cell, write_trace):
    def make(*texts, kind="dedicated", devices=None, seed=0, **traces):
        files = [str(write_trace(text, f"t{place}.csv")) for place, text in enumerate(texts)]
        cell["links"] = {"cell": {"kind": kind, "traces": {"files": files, **traces}}}
        return load_fleet(cell, devices=devices, seed=seed)

    return make


def down(fleet, time_s):
    return (downlink_bps(fleet.links_at(0, 0, time_s)) / 1e6).tolist()


def test_uplink_is_the_stated_ratio_of_the_downlink(traced):
    links = traced(RISING, uplink=0.25).links_at(0, 0, 3.0)
    assert links.up_capacity_bps.tolist() == (0.25 * links.down_capacity_bps).tolist()


def test_uplink_is_the_column_where_it_is_said_to_be_measured(traced):
    fleet = traced(OUTAGE, uplink="measured", offset="none")
    assert fleet.links_at(0, 0, 2.5).up_capacity_bps.tolist() == [1e6] * 4


def test_a_zero_row_is_an_outage_and_nothing_else(traced):
    fleet = traced(OUTAGE, uplink=0.5, offset="none")
    links = fleet.links_at(0, 0, 1.5)
    assert uplink_bps(links, np.ones(4)).tolist() == [0.0] * 4
    assert downlink_bps(links).tolist() == [0.0] * 4
    assert links.available.all()


def test_devices_on_one_file_stand_at_offsets_of_their_own(traced):
    fleet = traced(RISING, uplink=0.25, devices=20)
    assert len(set(down(fleet, 0.0))) > 10
    aligned = traced(RISING, uplink=0.25, devices=20, offset="none")
    assert set(down(aligned, 7.2)) == {8.0}


def test_a_device_keeps_its_offset_over_time(traced):
    fleet = traced(RISING, uplink=0.25)
    first, later = np.array(down(fleet, 0.0)), np.array(down(fleet, 10.0))
    assert ((later - first) % 50).round(6).tolist() == [10.0] * 4


def test_a_trace_loops_over_its_length(traced):
    fleet = traced(RISING, uplink=0.25)
    assert down(fleet, 3.0) == down(fleet, 3.0 + 50.0 * 1000)


def test_files_are_dealt_out_evenly_by_seed(traced):
    flat = [f"time_s,down_mbps\n0,{level}\n1,{level}\n" for level in (1, 2, 3, 4)]
    dealt = [down(traced(*flat, uplink=1, seed=seed), 0.0) for seed in range(5)]
    assert all(sorted(levels) == [1, 2, 3, 4] for levels in dealt)
    assert len({tuple(levels) for levels in dealt}) > 1


def test_devices_of_a_shared_link_follow_one_file_at_one_offset(traced):
    fleet = traced(RISING, OUTAGE, kind="shared", uplink=0.5, devices=30)
    assert len(set(down(fleet, 4.0))) == 1


def test_traced_links_are_looked_at_every_second(traced):
    assert traced(RISING, uplink=1).specs[0].slot_s == 1.0


def test_the_assumed_uplink_is_among_the_assumptions(traced):
    assert "uplink assumed 0.25 of the downlink" in " ".join(
        traced(RISING, uplink=0.25).assumptions
    )


@pytest.mark.parametrize(
    ("texts", "traces", "message"),
    [
        ([RISING], {}, r"uplink must be measured .* or a ratio above 0 .* got None"),
        ([RISING], {"uplink": 0}, r"or a ratio above 0 of the downlink, 0\.25 for instance, got 0"),
        ([RISING], {"uplink": "measured"}, r"t0\.csv has no up_mbps column; state a ratio"),
        (
            ["time_s,down_mbps,up_mbps\n0,1,0\n1,1,0\n"],
            {"uplink": "measured"},
            r"t0\.csv never carries a bit up; state a ratio",
        ),
        (["bad\n"], {"uplink": 1}, r"traces\.files cannot be used: trace .*t0\.csv must start"),
        (
            [RISING],
            {"uplink": 1, "offset": "some"},
            r"offset must be one of draw, none, got 'some'",
        ),
    ],
)
def test_wrong_trace_settings_are_refused(traced, texts, traces, message):
    with pytest.raises(FleetError, match=message):
        traced(*texts, **traces)


def test_a_pattern_that_matches_nothing_is_refused(cell, tmp_path):
    traces = {"files": str(tmp_path / "none_*.csv"), "uplink": 1}
    cell["links"] = {"cell": {"kind": "dedicated", "traces": traces}}
    with pytest.raises(FleetError, match=r"traces\.files names no file: '.*none_\*\.csv'"):
        load_fleet(cell)


def test_names_in_a_file_start_from_the_file_also_when_it_is_a_base(tmp_path, monkeypatch):
    below = tmp_path / "below"
    below.mkdir()
    (below / "t.csv").write_text(RISING)
    (below / "fleet.yaml").write_text(
        "links: {a: &a {kind: dedicated, traces: {files: t.csv, uplink: 0.5}}, b: *a}\n"
        "devices: [{name: x, link: [a, b], device: orin-nano-8gb, count: 2}]\n"
    )
    (tmp_path / "above.yaml").write_text("base: below/fleet.yaml\nname: above\n")
    monkeypatch.chdir(tmp_path)
    for source in ("below/fleet.yaml", "above.yaml", {"base": "above.yaml"}):
        assert len(load_fleet(source)) == 2


@pytest.mark.data
def test_ten_thousand_devices_follow_the_measured_traces(cell, traces):
    files = [str(traces / "ucc5g_*.csv"), str(traces / "belgium4g_*.csv")]
    cell["links"] = {"cell": {"kind": "dedicated", "traces": {"files": files, "uplink": 0.25}}}
    fleet = load_fleet(cell, devices=10_000)
    rates = np.concatenate([downlink_bps(fleet.links_at(0, 0, t)) for t in (0.0, 333.3, 1e5)])
    assert 25e6 < rates.mean() < 45e6
    assert 0 < np.mean(rates == 0) < 0.05
