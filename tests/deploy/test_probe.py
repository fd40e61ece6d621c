"""A probe file says what was measured, and the fleet reads it."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from airtune.deploy.federation.roster import Roster, joined_fleet
from airtune.engine.message import Joined
from airtune.errors import DeploymentError, FleetError
from airtune.fleet import load_fleet
from airtune.fleet.probe import read_probes
from airtune.fleet.rates import uplink_bps
from airtune.recipe import load_recipe
from airtune.wire.link import measure_link

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
    for name, value in {
        "in1_label": "VDD_CPU",
        "in2_label": "VDD_IN",
        "in2_input": "5000",
        "curr2_input": "1200",
    }.items():
        (folder / name).write_text(value)
    meter = PowerMeter(root=tmp_path)
    meter.start()
    assert meter.stop() == Drawn(6.0, "board sensor")


def test_the_link_must_be_measured_or_told():
    from airtune.cli.probe import _link_speeds, _server_of

    with pytest.raises(DeploymentError, match="--server"):
        _link_speeds(None, None, 3.0)
    with pytest.raises(DeploymentError, match="leave --up-mbps"):
        _link_speeds(_server_of("edge:1", None, None), 2.0, None)
    nowhere = (Path("no.crt"), Path("no.key"), Path("no.pem"))
    with pytest.raises(DeploymentError, match=r"no file at --ca no\.crt"):
        _link_speeds(_server_of("edge:1", nowhere, None), None, None)
    assert _link_speeds(None, 2.0, 3.0)[:2] == (2e6, 3e6)


@pytest.fixture
def served(tmp_path):
    """A server with TLS and keys in this process, and the device `gate` there."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    from airtune.deploy.caller import Proof, ServerClient
    from airtune.deploy.server.authority import ensure_certificates
    from airtune.deploy.server.enroll import enroll
    from airtune.deploy.server.front import Front
    from airtune.deploy.server.site import ServerSettings
    from airtune.wire.channel import SERVER

    state = tmp_path / "state"
    enroll(state, {"gate": None})
    ensure_certificates(state / "tls", ["127.0.0.1"])
    front = Front(ServerSettings(state, "127.0.0.1", 0))
    bundle = state / "bundles" / "gate"
    proof = Proof(bundle / "ca.crt", bundle / "device.key", bundle / "device.crt")
    yield ServerClient(f"127.0.0.1:{front.serve()}", proof, SERVER), state / "probes"
    front.close()


SAID = {
    "schema": 1,
    "name": "another",
    "flops_per_s": 1e9,
    "memory_bytes": 1e9,
    "up_mbps": 1e6,
    "down_mbps": 40.0,
}


def test_the_server_keeps_a_probe_with_the_uplink_that_it_measured(served):
    client, kept = served
    with pytest.raises(DeploymentError, match="the link of gate was not measured here"):
        client.call("Probe", **SAID)
    link = measure_link(client.way, seconds=0.1)
    assert link.up_bps > 1e7
    assert link.down_bps > 1e7
    assert 0 < link.round_trip_s < 10
    client.call("Probe", **SAID)
    [probe] = read_probes(kept)
    assert (probe.name, probe.down_bps) == ("gate", 40e6)
    assert probe.up_bps == pytest.approx(link.up_bps)


@pytest.mark.parametrize(
    "change",
    [
        {"flops_per_s": float("nan")},
        {"memory_bytes": -1.0},
        {"schema": 9},
        {"path": "../x"},
        {"details": "x" * (16 << 10)},
    ],
)
def test_what_is_no_probe_is_not_kept(served, change):
    client, kept = served
    measure_link(client.way, seconds=0.01)
    with pytest.raises(DeploymentError, match=r"the probe of gate|a probe has at most"):
        client.call("Probe", **SAID | change)
    assert not kept.exists()


def test_a_measurement_has_an_end_in_bytes_and_seconds(served, monkeypatch):
    client, _ = served
    with monkeypatch.context() as patched:
        patched.setattr("airtune.wire.link.MAX_BYTES", 1 << 20)
        with client.way.open() as channel:
            call = channel.stream_stream("/airtune.Split/Measure")
            with pytest.raises(Exception, match="at most 256 MiB each way"):
                list(call(iter([b"U" + bytes(1 << 19)] * 3)))
            with pytest.raises(Exception, match="at most 256 MiB each way"):
                list(call(iter([b"D" + (1 << 21).to_bytes(4, "little")])))
    monkeypatch.setattr("airtune.wire.link.MAX_S", 0.1)
    with client.way.open() as channel:
        waits = threading.Event()
        answers = channel.stream_stream("/airtune.Split/Measure")(one_then_none(waits))
        with pytest.raises(Exception, match="CANCELLED"):
            list(answers)
        waits.set()


def one_then_none(waits):
    yield b"?"
    waits.wait(60.0)


def test_one_call_at_a_time_measures_a_device(served):
    client, _ = served
    waits = threading.Event()
    with client.way.open() as channel:
        answers = channel.stream_stream("/airtune.Split/Measure")(one_then_none(waits))
        next(answers)
        with pytest.raises(FleetError, match="this device is being measured"):
            measure_link(client.way, seconds=0.1)
        waits.set()


def test_the_kept_probe_stands_in_for_one_that_an_agent_does_not_name(tmp_path):
    kept = tmp_path / "probes"
    kept.mkdir()
    write_probe(kept / "a.json", SAID | {"name": "a", "up_mbps": 3.0})
    joined = Joined(4, 0, 32, 0, 8, "base", "reader")
    own = replace(joined, probe=SAID | {"up_mbps": 7.0})
    for name, item, up_mbps in (("a", joined, 3.0), ("a", own, 7.0), ("b", joined, 20.0)):
        roster = Roster((name,), (item,))
        folder = tmp_path / f"{name}-{up_mbps}"
        fleet = joined_fleet(load_recipe(None), roster, folder, kept=kept)
        links = fleet.links_at(0, 0, 0.0)
        assert uplink_bps(links, np.ones(1), np.zeros(1, int))[0] == up_mbps * 1e6


def test_the_command_measures_the_link_and_the_server_keeps_the_file(served, tmp_path):
    client, kept = served
    output, proof = tmp_path / "probe.json", client.proof
    code = invoke(
        [
            "probe",
            str(output),
            "--server",
            client.address,
            "--ca",
            str(proof.authority),
            "--key",
            str(proof.key),
            "--seconds",
            "0.2",
            "--model",
            "smollm2-135m",
        ]
    )
    assert code == 0
    [own], [its] = read_probes(output), read_probes(kept)
    assert (own.name, its.name) == ("gate", "gate")
    assert its.up_bps == pytest.approx(own.up_bps)
    assert load_fleet(str(kept)).names == ("gate",)
