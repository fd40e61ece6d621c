"""How who has a key already gets a new one, and learns of a new authority."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import grpc

from airtune.deploy.keys import fingerprint_of, public_of_request
from airtune.deploy.server.audit import Audit
from airtune.deploy.server.authority import issue_certificate
from airtune.deploy.server.gate import LOCAL, Caller, Requests
from airtune.deploy.server.register import Register
from airtune.deploy.server.site import ServerSettings
from airtune.errors import DeploymentError
from airtune.wire.channel import read_json
from airtune.wire.envelope import VERSION


class Renewal:
    """The calls of devices and operators about their own keys."""

    def __init__(self, settings: ServerSettings, audit: Audit) -> None:
        """Know where keys are written down."""
        self._settings, self._audit = settings, audit

    def hello(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Say who calls, and what the server is."""
        next(requests, b"")
        now = datetime.now(UTC).timestamp()
        yield json.dumps(
            {"name": who.name, "role": who.role, "version": VERSION, "time": now}
        ).encode()

    def renew(
        self, who: Caller, requests: Requests, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """Certify a new key; the present one holds until the new one is used."""
        asked = read_json(next(requests, b""))
        try:
            if not who.public or who.name == LOCAL:
                raise DeploymentError(
                    "a server without keys renews none, nor that of its own machine"
                )
            public = public_of_request(str(asked.get("request")).encode())
            Register(self._settings.state).offer(who.name, public)
        except DeploymentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self._audit.note("new key", of=who.name, peer=who.peer, key=fingerprint_of(public))
        yield json.dumps(proof_for(self._settings, who.name, public)).encode()


def proof_for(settings: ServerSettings, name: str, public: str) -> dict[str, str]:
    """Return a certificate of a key, and the authorities to trust, as they are sent."""
    files = settings.tls
    certificate = issue_certificate(files.folder, name, public).decode()
    return {"certificate": certificate, "authority": files.authority.read_text("ascii")}
