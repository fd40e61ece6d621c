"""A network on one machine has the rates, delays and cuts it was asked for."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from testbed.network import SERVER_ADDRESS, down, inside, set_link, up, why_not  # noqa: E402
from testbed.spec import DeviceSpec, Spec, SpecError, read_spec  # noqa: E402
from testbed.traces import LEAST_MBPS, LTE, THREE_G, drive_of  # noqa: E402

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
SPEC = Spec(f"test{WORKER}", (DeviceSpec("near", 20, 40), DeviceSpec("far", 8, 16, delay_ms=30)))
SINK = """
import socket, time
server = socket.create_server(("0.0.0.0", 7000))
print("ready", flush=True)
while True:
    line, _ = server.accept()
    got = len(line.recv(1))
    first = last = time.monotonic()
    line.sendall(b"!")
    while piece := line.recv(65536):
        got, last = got + len(piece), time.monotonic()
    print(8 * got / max(last - first, 1e-9), flush=True)
"""
SOURCE = """
import socket, sys, time
line = socket.create_connection((sys.argv[1], 7000), timeout=3)
start = time.monotonic()
line.sendall(b"?")
line.recv(1)
print(time.monotonic() - start)
line.sendall(bytes(int(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def sink():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    down(SPEC)
    up(SPEC)
    with subprocess.Popen(
        inside(SPEC, None, [sys.executable, "-c", SINK]), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout.readline() == "ready\n"
        yield server
        server.kill()
        server.stdout.close()
    down(SPEC)


def send(device, size):
    return subprocess.run(
        inside(SPEC, device, [sys.executable, "-c", SOURCE, SERVER_ADDRESS, str(int(size))]),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("device", [0, 1])
def test_a_link_has_its_rate_and_its_delay(sink, device):
    spec = SPEC.devices[device]
    trip_s = float(send(device, spec.up_mbps * 1e6 / 8 * 4).stdout)
    assert float(sink.stdout.readline()) == pytest.approx(spec.up_mbps * 1e6, rel=0.15)
    assert 2e-3 * spec.delay_ms <= trip_s < 2e-3 * spec.delay_ms + 0.03


def test_a_link_goes_down_and_up(sink):
    set_link(SPEC, 0, is_up=False)
    assert send(0, 1000).returncode != 0
    set_link(SPEC, 0, is_up=True)
    assert send(0, 1000).returncode == 0
    sink.stdout.readline()


def test_the_shipped_bed_is_read():
    assert [device.needs_tunnel for device in read_spec().devices] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\ndevices: [{name: a, up_mbps: 1}]", "incomplete"),
        ("name: x\ndevices: [{name: a, up_mbps: 0, down_mbps: 1}]", "above 0"),
        ("name: x\ndevices: [{name: a, speed: 1}]", "has cpu"),
        ("devices: []", "name and devices"),
    ],
)
def test_a_wrong_bed_is_refused(tmp_path, text, says):
    path = tmp_path / "bed.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=says):
        read_spec(path)


@pytest.mark.parametrize("kind", [THREE_G, LTE])
def test_a_drawn_drive_has_the_median_and_the_scatter_it_was_asked_for(kind):
    rates = np.log(drive_of(kind, 20_000, 0))
    assert np.exp(np.median(rates, 0)) == pytest.approx([kind.up_mbps, kind.down_mbps], rel=0.15)
    quartiles = np.quantile(rates[:, 0], [0.25, 0.75])
    assert np.ptp(quartiles) == pytest.approx(1.35 * kind.scatter, rel=0.2)
    assert np.exp(rates.min()) >= LEAST_MBPS * (1 - 1e-9)
