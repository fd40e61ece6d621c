"""Checks of a server, and of an agent, before anything is started."""

from __future__ import annotations

import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from airtune.deploy.agent.settings import AgentSettings, check_settings
from airtune.deploy.caller import ServerClient, check_server
from airtune.deploy.keys import days_left
from airtune.deploy.memory import available_bytes, floor_bytes
from airtune.deploy.server.process import why_not_free
from airtune.deploy.server.site import ServerSettings, is_held, running
from airtune.errors import AirtuneError
from airtune.units import format_bytes
from airtune.wire.channel import SERVER

ROOM_BYTES, ENDS_SOON_DAYS, SKEW_S = 1 << 30, 30.0, 60.0
Verdict = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what came of it."""

    what: str
    verdict: Verdict
    why: str


def check_site(settings: ServerSettings) -> Iterator[Finding]:
    """Look at a server's folder, ports, certificates and room; also while it runs."""
    state, is_running = settings.state, is_held(settings.state)
    known = running(settings.state) if is_running else settings
    for port in (known.port, known.enrol_port):
        yield _port(known.host, port, is_running=is_running)
    yield _modes(state)
    tls = known.tls
    if not known.insecure:
        if tls.certificate.is_file():
            for path in (tls.authority, tls.certificate):
                yield _certificate(path)
        else:
            yield Finding("certificates", "ok", "made by the first start")
    if is_running:
        yield _asked(
            "TLS at its own address",
            lambda: check_server(known.address, None if known.insecure else tls.authority),
            "answers",
        )
    yield from (_name(name) for name in known.names)
    yield _room(state, "disk")
    yield _memory(None)


def check_agent(settings: AgentSettings) -> Iterator[Finding]:
    """Look at what an agent would be started with, and ask the server whether it knows this device."""
    proof = settings.proof
    yield _asked("settings and data", lambda: check_settings(settings), "can be read")
    yield _asked(
        "server",
        lambda: check_server(settings.server, None if proof is None else proof.authority),
        f"answers at {settings.server}",
    )
    if proof is not None and proof.certificate.is_file():
        yield _modes(proof.key)
        for path in (proof.authority, proof.certificate):
            yield _certificate(path)
        yield _key(ServerClient(settings.server, proof, SERVER))
    if settings.cache is not None:
        yield _room(settings.cache, "disk of the cache")
    yield _memory(settings.memory_bytes)


def _asked(what: str, ask: Callable[[], object], done: str) -> Finding:
    try:
        ask()
    except AirtuneError as error:
        return Finding(what, "fault", str(error))
    return Finding(what, "ok", done)


def _key(link: ServerClient) -> Finding:
    """Return whether the server knows this device, and what the clocks say of each other."""
    try:
        before, said, after = time.time(), link.call("Hello"), time.time()
    except AirtuneError as error:
        return Finding("key", "fault", str(error))
    apart_s = float(said["time"]) - (before + after) / 2
    clock = f"the server's clock is {apart_s:+.0f} s off this one"
    return Finding(
        "key and clock",
        "ok" if abs(apart_s) < SKEW_S else "warning",
        f"known as {said['name']} to a server of version {said['version']}; {clock}",
    )


def _port(host: str, port: int, *, is_running: bool) -> Finding:
    what = f"port {port}"
    if is_running:
        return Finding(what, "ok", "the server that runs has it, or takes it when a code is made")
    why = why_not_free(host, port)
    return Finding(
        what, "fault" if why else "ok", f"cannot be listened at: {why}" if why else "free"
    )


def _modes(path: Path) -> Finding:
    """Return whether others can read a folder of keys, or a key."""
    if not path.exists():
        return Finding("modes", "ok", f"{path} is made by the first start")
    keys = sorted(path.rglob("*.key")) if path.is_dir() else [path]
    for one in (path, *keys):
        if stat.S_IMODE(one.stat().st_mode) & 0o077:
            fix = "700" if one.is_dir() else "600"
            return Finding("modes", "fault", f"others can read {one}: chmod {fix} {one}")
    return Finding("modes", "ok", f"{path} and its keys are its owner's alone")


def _certificate(path: Path) -> Finding:
    try:
        left = days_left(path)
    except AirtuneError as error:
        return Finding(path.name, "fault", str(error))
    verdict: Verdict = "warning" if left < ENDS_SOON_DAYS else "ok"
    return Finding(path.name, verdict, f"ends in {left:.0f} days")


def _name(name: str) -> Finding:
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return Finding(f"name {name}", "warning", f"cannot be looked up here: {error}")
    return Finding(f"name {name}", "ok", "can be looked up")


def _room(path: Path, what: str) -> Finding:
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    verdict: Verdict = "ok" if free >= ROOM_BYTES else "warning"
    return Finding(what, verdict, f"{format_bytes(free)} free at {there}")


def _memory(cap_bytes: float | None) -> Finding:
    """Return whether a process that has loaded torch fits."""
    try:
        floor, free = floor_bytes(), available_bytes()
    except AirtuneError as error:
        return Finding("memory", "fault", str(error))
    left = min(free, cap_bytes or free)
    said = f"{format_bytes(left)} to use, {format_bytes(floor)} before anything is trained"
    return Finding("memory", "ok" if left > floor else "fault", said)
