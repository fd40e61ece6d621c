"""The network: a namespace for the server and one a device, joined by links of given rates.

    at-NAME-server  10.77.0.1 on its loopback; 10.77.i.1 towards device i
    at-NAME-i       10.77.i.2

A link is a veth pair or, where it has delay or loss, a pair of TUN devices joined by
`testbed.tunnel`; each end's egress is shaped by tc's token bucket.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from testbed.spec import DeviceSpec, Spec

SERVER_ADDRESS = "10.77.0.1"
CGROUP = Path("/sys/fs/cgroup/cpu")
_BURST_S = 0.005
"""Of a shaper's rate, at least a few packets."""
_QUEUE = "100ms"


def why_not() -> str:
    """Return why no test bed can be made here, "" where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a test bed needs root on Linux"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"a test bed needs {tool} (iproute2)"
    trial = f"at-trial-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", trial], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    tried = subprocess.run(
        ["ip", "-n", trial, "link", "add", "v0", "type", "veth", "peer", "name", "v1"],
        capture_output=True, check=False,
    )  # fmt: skip
    shaped = subprocess.run(
        ["tc", "-n", trial, "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "1mbit", "burst",
         "16kb", "latency", "50ms"], capture_output=True, check=False,
    )  # fmt: skip
    subprocess.run(["ip", "netns", "del", trial], capture_output=True, check=False)
    if tried.returncode or shaped.returncode:
        return "veth or tc's tbf is not to be had here"
    return ""


def server_space(spec: Spec) -> str:
    """Return the namespace of the server."""
    return f"at-{spec.name}-server"


def device_space(spec: Spec, device: int) -> str:
    """Return the namespace of a device."""
    return f"at-{spec.name}-{device}"


def up(spec: Spec) -> None:
    """Make the network; `down` it first if it is there."""
    server = server_space(spec)
    _run("ip", "netns", "add", server)
    _run("ip", "-n", server, "link", "set", "lo", "up")
    _run("ip", "-n", server, "addr", "add", f"{SERVER_ADDRESS}/32", "dev", "lo")
    for place, device in enumerate(spec.devices, start=1):
        space = device_space(spec, place - 1)
        _run("ip", "netns", "add", space)
        _run("ip", "-n", space, "link", "set", "lo", "up")
        _join(server, space, place, device)
        _run("ip", "-n", space, "route", "add", SERVER_ADDRESS, "via", f"10.77.{place}.1")
        _slow(space, device.cpu)


def down(spec: Spec) -> None:
    """Take down what there is: processes in the namespaces, namespaces, control groups."""
    spaces = [server_space(spec), *(device_space(spec, i) for i in range(len(spec.devices)))]
    known = _output("ip", "netns", "list").split()
    for space in spaces:
        if space in known:
            _empty(space)
            _quiet("ip", "netns", "del", space)
        _remove(CGROUP / space)


def _remove(group: Path, *, patience_s: float = 10.0) -> None:
    """Remove a control group; processes that were just killed hold it a moment longer."""
    until = time.monotonic() + patience_s
    while group.is_dir():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            _quiet("kill", "-9", *(group / "cgroup.procs").read_text(encoding="ascii").split())
            time.sleep(0.1)


def _empty(space: str, *, patience_s: float = 10.0) -> None:
    """End what runs in a namespace, supervisors that start things again included."""
    until = time.monotonic() + patience_s
    while pids := _output("ip", "netns", "pids", space).split():
        if time.monotonic() > until:
            raise RuntimeError(f"processes {', '.join(pids)} of {space} do not end")
        _quiet("kill", "-9", *pids)
        time.sleep(0.1)


def inside(spec: Spec, device: int | None, command: Sequence[str]) -> list[str]:
    """Return a command as it runs on a device, or on the server."""
    space = server_space(spec) if device is None else device_space(spec, device)
    enter = ["ip", "netns", "exec", space, *command]
    group = CGROUP / space
    if device is None or not group.is_dir():
        return enter
    # joined outside: inside, another /sys is mounted
    return ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *enter]


def set_link(spec: Spec, device: int, *, is_up: bool) -> None:
    """Cut or mend a device's link at the device's end."""
    space, state = device_space(spec, device), "up" if is_up else "down"
    _run("ip", "-n", space, "link", "set", "air", state)
    if is_up:
        _run("ip", "-n", space, "route", "replace", SERVER_ADDRESS, "via", f"10.77.{device + 1}.1")


def set_rate(spec: Spec, device: int, up_mbps: float, down_mbps: float | None = None) -> None:
    """Give a device's way up another rate, and perhaps its way down."""
    _shape(device_space(spec, device), "air", up_mbps)
    if down_mbps is not None:
        _shape(server_space(spec), f"d{device + 1}", down_mbps)


def set_speed(spec: Spec, device: int, cpu: float) -> None:
    """Give a device another share of a processor.

    Raises:
        OSError: if the device has no control group.
    """
    _limit(CGROUP / device_space(spec, device), cpu)


def is_sending(spec: Spec, device: int) -> bool:
    """Return whether something waits on a device's way up."""
    told = _output("tc", "-n", device_space(spec, device), "-s", "qdisc", "show", "dev", "air")
    found = re.search(r"backlog (\d+)", told)
    return found is not None and int(found[1]) > 0


def _join(server: str, space: str, place: int, device: DeviceSpec) -> None:
    near = f"d{place}"
    if device.needs_tunnel:
        _start_tunnel(server, space, near, device)
    else:
        _run("ip", "-n", server, "link", "add", near, "type", "veth", "peer", "name", "air", "netns", space)  # fmt: skip
    for where, name, last, rate in (
        (server, near, 1, device.down_mbps), (space, "air", 2, device.up_mbps)
    ):  # fmt: skip
        _run("ip", "-n", where, "addr", "add", f"10.77.{place}.{last}/30", "dev", name)
        _run("ip", "-n", where, "link", "set", name, "up")
        _shape(where, name, rate)


def _shape(space: str, name: str, rate_mbps: float) -> None:
    burst = max(int(rate_mbps * 1e6 / 8 * _BURST_S), 5000)
    # segments joined by the kernel would be larger than the bucket
    _run("tc", "-n", space, "qdisc", "replace", "dev", name, "root", "tbf", "rate",
         f"{rate_mbps}mbit", "burst", str(burst), "latency", _QUEUE)  # fmt: skip


def _slow(space: str, cpu: float) -> None:
    """Limit what runs on a device to a share of a processor, where it is less than all."""
    if cpu >= (os.cpu_count() or 1):
        return
    group = CGROUP / space
    group.mkdir(exist_ok=True)
    _limit(group, cpu)


def _limit(group: Path, cpu: float) -> None:
    (group / "cpu.cfs_period_us").write_text("50000")
    (group / "cpu.cfs_quota_us").write_text(str(int(50000 * cpu)))


def _start_tunnel(server: str, space: str, near: str, device: DeviceSpec) -> None:
    """Make a TUN device in both namespaces and the program that joins them."""
    # it goes on in the background once both ends are there, until its namespaces are gone
    subprocess.run(
        [sys.executable, "-m", "testbed.tunnel", server, near, space, "air",
         str(device.delay_ms / 1e3), str(device.loss)],
        cwd=Path(__file__).parents[1], check=True,
    )  # fmt: skip


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def _quiet(*command: str) -> None:
    subprocess.run(command, check=False, capture_output=True)
