"""Certificates for callers: for a new key of a known caller, and for a device with a code.

Devices enrol at a second port that is open while a code is valid.

Who calls here has no certificate yet, so nothing else is served: one call of at most 16 KiB, from few
connections, each ended after 20 s. What comes is a code, a name and a signing request; what goes
back is a certificate and ca.crt.

    /airtune.Enrol/Sign    {"code", "name", "request"} -> {"certificate", "authority"}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime
from typing import Any

import grpc

from airtune.deploy.codes import EnrolmentCode
from airtune.deploy.keys import fingerprint_of, public_of_request
from airtune.deploy.server.audit import Audit
from airtune.deploy.server.authority import issue_certificate
from airtune.deploy.server.gate import LOCAL, Caller, Requests
from airtune.deploy.server.register import Register, check_name
from airtune.deploy.server.site import ServerSettings
from airtune.deploy.server.tls import ServerTls
from airtune.errors import DeploymentError
from airtune.wire.channel import ENROL, read_json, server_options
from airtune.wire.message import VERSION


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
                    "there is no key to renew: the server runs without TLS, or the call comes from "
                    "the server's own machine, which needs none"
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


_MESSAGE_BYTES, _CONNECTIONS, _AGE_S, _CALLS = 16 << 10, 64, 20.0, 16
log = logging.getLogger("airtune.server")


class Enrolment:
    """The port for devices that have a code and no certificate."""

    def __init__(self, settings: ServerSettings, audit: Audit, tls: ServerTls) -> None:
        """Listen nowhere yet.

        Args:
            settings: the server's.
            audit: where enrolments are written down.
            tls: the server's certificate.
        """
        self._settings, self._audit, self._tls = settings, audit, tls
        self._server: grpc.Server | None = None
        self._is_told = False
        self.port = 0
        """Where it listens; 0 = it does not."""

    def refresh(self, register: Register) -> None:
        """Listen while any code enrols anybody, and no longer."""
        is_wanted = any(not code.why_not for code in register.codes)
        if is_wanted and self._server is None:
            self._open()
        elif not is_wanted:
            self.close()

    def close(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.stop(1.0).wait()
            log.info("port %d, where devices enrol, is closed", self.port)
        self._server, self.port = None, 0

    def _open(self) -> None:
        server = grpc.server(
            futures.ThreadPoolExecutor(_CALLS, thread_name_prefix="enrol"),
            options=server_options(
                connections=_CONNECTIONS, message_bytes=_MESSAGE_BYTES, age_s=_AGE_S
            ),
            maximum_concurrent_rpcs=_CALLS,
        )
        handler = grpc.unary_unary_rpc_method_handler(self._sign)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(ENROL, {"Sign": handler}),)
        )
        address = f"{self._settings.host}:{self._settings.enrol_port}"
        try:
            self.port = int(server.add_secure_port(address, self._tls.enrol_credentials()))
        except RuntimeError as error:
            if not self._is_told:  # it is tried again and again
                log.error("devices cannot enrol at %s, another program has it: %s", address, error)
            self._is_told = True
            return
        self._is_told = False
        server.start()
        self._server = server
        log.info("devices enrol at port %d", self.port)

    def _sign(self, content: bytes, context: grpc.ServicerContext) -> bytes:
        """Certify the key of who has a code."""
        said, peer = read_json(content), str(context.peer())
        name = str(said.get("name"))[:64]
        try:
            answer = self._certified(said, check_name(name), peer)
        except DeploymentError as error:
            log.info("%s may not enrol as %r: %s", peer, name, error)
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return answer

    def _certified(self, said: dict[str, Any], name: str, peer: str) -> bytes:
        code = EnrolmentCode.read(str(said.get("code")))
        public = public_of_request(str(said.get("request")).encode())
        device = Register(self._settings.state).enrol(code.hash, name, public)
        self._audit.note("enrol", of=f"code {device.code}", peer=peer, device=name)
        return json.dumps(proof_for(self._settings, name, public)).encode()
