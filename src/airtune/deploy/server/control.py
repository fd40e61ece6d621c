"""What operators ask of a server; each order is written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import grpc

from airtune.deploy import ROSTER
from airtune.deploy.labels import format_labels, matches
from airtune.deploy.server.audit import Audit
from airtune.deploy.server.enrolment import Renewal
from airtune.deploy.server.gate import Call, Caller, Gate, Requests
from airtune.deploy.server.register import Role
from airtune.deploy.server.runs import Runs
from airtune.deploy.server.site import DRAINING, ServerSettings
from airtune.errors import MismatchError
from airtune.methods.plugins import is_path
from airtune.recipe import sent_recipe
from airtune.wire.channel import read_json

ORDER = frozenset({"recipe", "resume", "rounds", "clock", "devices", "join-s", "silent-s", "where"})
"""What an order may hold; nothing in it is code."""


class Devices(Protocol):
    """The devices of a server."""

    def devices(self) -> list[dict[str, Any]]:
        """Return what is known of each."""
        ...

    def evict(self, number: int, name: str) -> bool:
        """Take one out of a run; False where it is not in it."""
        ...

    def drain(self, name: str) -> bool:
        """Give one no new task; False where it is not connected."""
        ...


class Control:
    """The calls of operators, by their names, each with the role that it needs."""

    def __init__(
        self, settings: ServerSettings, runs: Runs, devices: Devices, gate: Gate, audit: Audit
    ) -> None:
        """Know what is asked about."""
        self._settings, self._runs, self._devices, self._gate = settings, runs, devices, gate
        self._audit, renewal = audit, Renewal(settings, audit)
        self.calls: Mapping[str, tuple[Call, Role]] = {
            "Submit": (self._submit, "run"),
            "Stop": (self._stop, "run"),
            "List": (self._list, "view"),
            "Follow": (self._follow, "view"),
            "Evict": (self._evict, "run"),
            "Drain": (self._drain, "run"),
            "Renew": (renewal.renew, "view"),
            "Hello": (renewal.hello, "view"),
        }

    def _submit(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        order = read_json(next(requests, b""))
        why = self._why_not(order, who)
        if why:
            self._note(who, "submit", refused=why)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)
        name = str(order.get("resume") or "") or sent_recipe(order["recipe"]).label
        number = self._runs.submit(
            order, name=name, operator=who.name, where=order.get("where") or {}
        )
        self._note(who, "submit", run=number, recipe=name)
        yield json.dumps({"run": number}).encode()

    def _why_not(self, order: Mapping[str, Any], who: Caller) -> str:
        """Return why an order is not carried out, "" if it is."""
        if (self._settings.state / DRAINING).exists():
            return "the server is draining and takes no new run"
        unknown = order.keys() - ORDER
        if unknown or not isinstance(order.get("recipe"), str):
            return f"an order has {', '.join(sorted(ORDER))}, got {', '.join(sorted(order))}"
        if why := self._why_not_where(order):
            return why
        try:
            recipe = sent_recipe(order["recipe"])
        except MismatchError as error:
            return str(error)
        resume = str(order.get("resume") or "")
        if who.role == "admin":
            return self._why_not_resume(resume)
        for is_code, what in (
            (
                is_path(recipe.method.name),
                f"the method {recipe.method.name!r} is a file at the server",
            ),
            (recipe.model.allow_pickle, "model.allow_pickle reads weights that can run code"),
        ):
            if is_code:
                return f"{what}: that takes the role admin, and {who.name} has {who.role}"
        if Path(resume).name != resume:
            return f"a run to go on with is named by its folder in runs/, got {resume!r}"
        return self._why_not_resume(resume)

    def _why_not_resume(self, resume: str) -> str:
        """Return why a run cannot go on, "" if it can or none is named."""
        runs = self._settings.state / "runs"
        if not resume or (runs / resume / ROSTER).is_file():
            return ""
        there = sorted(path.parent.name for path in runs.glob(f"*/{ROSTER}"))[-_NAMED:]
        return (
            f"there is no run {resume} here whose devices had joined; the newest that can go on "
            f"are: {', '.join(there) or 'none'}"
        )

    def _why_not_where(self, order: Mapping[str, Any]) -> str:
        """Return why the devices that an order asks for cannot be had, "" if they can."""
        where = order.get("where") or {}
        if not (isinstance(where, dict) and all(isinstance(one, str) for one in where.values())):
            return f"where has labels and their values, got {where!r}"
        if not where:
            return ""
        if order.get("resume"):
            return "a run that is resumed has the devices it had; leave --where out"
        known = self._gate.labels().values()
        found, wanted = sum(matches(one, where) for one in known), int(order.get("devices") or 1)
        if found >= wanted:
            return ""
        there = sorted({format_labels({key: value}) for one in known for key, value in one.items()})
        return (
            f"{found} devices have {format_labels(where)}, {wanted} are asked for; labels are "
            f"{', '.join(there) or 'none (airtune device label NAME KEY=VALUE)'}"
        )

    def _evict(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        asked = read_json(next(requests, b""))
        number, name = _number(asked), str(asked.get("device"))
        self._note(who, "evict", run=number, device=name)
        if not self._devices.evict(number, name):
            context.abort(grpc.StatusCode.NOT_FOUND, f"{name} is in no run {number} that runs here")
        yield b"{}"

    def _drain(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        name = str(read_json(next(requests, b"")).get("device"))
        self._note(who, "drain", device=name)
        if not self._devices.drain(name):
            context.abort(grpc.StatusCode.NOT_FOUND, f"{name} is not connected")
        yield b"{}"

    def _stop(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        number = _number(read_json(next(requests, b"")))
        self._note(who, "stop", run=number)
        row = self._runs.stop(number)
        if row is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no run {number} runs or waits here")
            return
        can_go_on = row.folder and not self._why_not_resume(row.folder)
        yield json.dumps({"folder": row.folder if can_go_on else ""}).encode()

    def _list(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        refused = [
            {
                "device": name or None,
                "reason": f"refused {name or 'a caller'}: {why}",
                "count": count,
            }
            for (name, why), count in self._gate.refused.items()
        ]
        yield json.dumps(
            {
                "devices": self._devices.devices(),
                "refused": refused,
                "behind": self._behind(),
                "runs": [
                    asdict(row) | {"waits_for": self._runs.waits_for(row)}
                    for row in self._runs.rows
                ],
            }
        ).encode()

    def _behind(self) -> list[str]:
        """Return who has not followed while the authority is replaced; nobody at other times."""
        return self._gate.behind() if self._settings.tls.former_key.is_file() else []

    def _follow(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        number = _number(read_json(next(requests, b"")))
        if number not in {row.number for row in self._runs.rows}:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no run {number} here")
        for line in self._runs.follow(number, context.is_active):
            for start in range(0, len(line), _PIECE_BYTES):
                yield line[start : start + _PIECE_BYTES]

    def _note(self, who: Caller, call: str, **what: Any) -> None:
        self._audit.note(call, of=who.name, peer=who.peer, role=who.role, **what)


_PIECE_BYTES, _NAMED = 512 << 10, 5


def _number(asked: Mapping[str, Any]) -> int:
    number = asked.get("run")
    return number if isinstance(number, int) else -1
