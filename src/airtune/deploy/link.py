"""A caller's side: calls of a server that take and return JSON, for operators and devices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from airtune.deploy.proof import Proof
from airtune.deploy.reach import check_server
from airtune.deploy.server.site import ServerSettings
from airtune.errors import AirtuneError, ConnectionFailedError, DeploymentError, KeyRefusedError
from airtune.wire.channel import CONTROL, SERVER, Way

_REPLY_S = 60.0
_DENIED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


@dataclass(frozen=True, slots=True)
class Link:
    """How an operator, or a device, reaches a server."""

    address: str
    """HOST:PORT."""
    proof: Proof | None
    """None = a server without TLS and keys."""
    service: str = CONTROL
    """What is called: that of operators, or of devices."""

    def ask(self, call: str, **words: Any) -> Iterator[bytes]:
        """Make a call and yield what comes back.

        Raises:
            ConnectionFailedError: if the server cannot be reached.
            KeyRefusedError: if it does not let this caller do that.
            DeploymentError: if it is another server, or refuses what is asked.
        """
        way = Way(self.address, None if self.proof is None else self.proof.credentials())
        timeout_s = None if call == "Follow" else _REPLY_S
        with way.open() as channel:
            answers = channel.stream_stream(f"/{self.service}/{call}")(
                iter([json.dumps(words).encode()]), timeout=timeout_s
            )
            try:
                yield from answers
            except grpc.RpcError as error:
                raise self._fault(error) from error
            finally:
                answers.cancel()

    def call(self, call: str, **words: Any) -> dict[str, Any]:
        """Make a call that answers once; raises as `ask`."""
        return dict(json.loads(b"".join(self.ask(call, **words)) or b"{}"))

    @property
    def _who(self) -> str:
        return "device" if self.service == SERVER else "operator"

    def _fault(self, error: grpc.RpcError) -> AirtuneError:
        details = error.details() or ""
        if error.code() in _DENIED:
            return KeyRefusedError(
                f"the server at {self.address} refuses this {self._who}: {details}"
            )
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return DeploymentError(f"the server at {self.address} refused: {details}")
        check_server(self.address, None if self.proof is None else self.proof.authority)
        if self.proof is None:
            return ConnectionFailedError(f"the server at {self.address} ended the call: {details}")
        return KeyRefusedError(
            f"the server at {self.address} does not take the key {self.proof.key}, or ended the "
            f"call ({details}); airtune {self._who} list there says which keys are valid"
        )


def local_link(settings: ServerSettings) -> Link:
    """Return how commands on the server's own machine reach it."""
    tls = settings.tls
    if settings.insecure:
        return Link(settings.address, None)
    return Link(settings.address, Proof(tls.authority, tls.local_key, tls.local_certificate))
