"""A probe file says what was measured, and the fleet reads it."""

import json
from pathlib import Path

import pytest

from airtune.cli.main import invoke
from airtune.cost import SpeedProfile
from airtune.deploy.agent.power import Drawn, PowerMeter
from airtune.deploy.agent.probe import (
    Figures,
    Speed,
    measure_speed,
    probe_document,
    reference_of,
    write_probe,
)
from airtune.errors import DeploymentError
from airtune.fleet import load_fleet

FIGURES = Figures(
    Speed(SpeedProfile(1e12, 1e10), (0.1, 0.2), Drawn(7.5, "RAPL")), 2e9, 20e6, 50e6, 0.03
)


def test_a_probed_device_is_a_fleet(tmp_path):
    shape, workload = reference_of("smollm2-135m", batch=2, tokens=64, rank=4)
    for name in ("one", "two"):
        write_probe(
            tmp_path / f"{name}.json",
            probe_document(name, FIGURES, shape=shape, workload=workload, link="cell"),
        )
    fleet = load_fleet(str(tmp_path))
    assert fleet.names == ("one", "two")
    assert (fleet.memory_bytes == 2e9).all()
    assert (fleet.power_w == 7.5).all()
    assert 0 < fleet.flops_per_s[0] < 1e12


def test_power_that_cannot_be_read_is_left_out():
    shape, workload = reference_of(None, batch=1, tokens=32, rank=4)
    figures = Figures(Speed(FIGURES.speed.profile, (0.1, 0.2), None), 2e9, 20e6, 50e6)
    assert "power_w" not in probe_document("x", figures, shape=shape, workload=workload)


@pytest.mark.slow
def test_this_machine_can_be_measured(tmp_path):
    speed = measure_speed(seconds=0.2, meter=PowerMeter(root=tmp_path))
    assert 1e7 < speed.profile.flops_per_s < 1e15
    assert speed.drawn is None


def counter(folder, value):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text("100000000\n")


def test_rapl_is_read_per_package_and_runs_over(tmp_path):
    times = iter([0.0, 2.0])
    packages = [tmp_path / "class" / "powercap" / f"intel-rapl:{i}" for i in range(2)]
    counter(packages[0], 10_000_000)
    counter(packages[1], 99_000_000)
    counter(tmp_path / "class" / "powercap" / "intel-rapl:0:0", 5)
    meter = PowerMeter(root=tmp_path, clock=lambda: next(times))
    meter.start()
    counter(packages[0], 20_000_000)
    counter(packages[1], 3_000_000)
    assert meter.stop() == Drawn(7.0, "RAPL")


def test_a_jetson_is_read_at_its_input(tmp_path):
    folder = tmp_path / "class" / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    for name, value in {"in1_label": "VDD_CPU", "in2_label": "VDD_IN", "in2_input": "5000",
                        "curr2_input": "1200"}.items():  # fmt: skip
        (folder / name).write_text(value)
    meter = PowerMeter(root=tmp_path)
    meter.start()
    assert meter.stop() == Drawn(6.0, "board sensor")


def test_the_link_must_be_measured_or_told():
    from airtune.cli.probe import _link_speeds

    with pytest.raises(DeploymentError, match="--server"):
        _link_speeds(None, None, None, 3.0)
    with pytest.raises(DeploymentError, match="leave --up-mbps"):
        _link_speeds("edge:1", None, 2.0, None)
    nowhere = (Path("no.crt"), Path("no.key"), Path("no.pem"))
    with pytest.raises(DeploymentError, match=r"no file at --ca no\.crt"):
        _link_speeds("edge:1", nowhere, None, None)
    assert _link_speeds(None, None, 2.0, 3.0)[:2] == (2e6, 3e6)


@pytest.mark.slow
def test_the_command_probes_over_the_servers_port(tmp_path):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    from airtune.engine.stream import StreamServer

    server = StreamServer(may_measure=lambda token: True)
    code = invoke([
        "probe", str(tmp_path / "probe.json"), "--server", f"127.0.0.1:{server.port}",
        "--insecure", "--seconds", "1",
        "--model", "smollm2-135m",
    ])  # fmt: skip
    server.close()
    assert code == 0
    written = json.loads((tmp_path / "probe.json").read_text())
    assert written["up_mbps"] > 10
    assert load_fleet(str(tmp_path / "probe.json")).names == (written["name"],)
