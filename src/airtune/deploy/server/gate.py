"""Authentication and authorisation of a call, before anything of it is read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc

from airtune.deploy.keys import fingerprint_of, public_in
from airtune.deploy.labels import Labels
from airtune.deploy.server.audit import Audit
from airtune.deploy.server.authority import ensure_local_operator, is_issued_by
from airtune.deploy.server.register import (
    OPERATORS,
    REGISTER,
    Register,
    Registered,
    Role,
    check_name,
)
from airtune.deploy.server.site import ServerSettings
from airtune.errors import AirtuneError, DeploymentError
from airtune.wire.channel import DEVICE_KEY, Metadata, value_of

LOCAL = "local"
"""What the operator is called that commands on the server's own machine are."""
log = logging.getLogger("airtune.server")
Requests = Iterator[bytes]
Call = Callable[["Caller", Requests, grpc.ServicerContext], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has proved itself."""

    name: str
    role: Role
    peer: str
    """Address that it calls from."""
    public: str = ""
    """Its key; empty at a server without keys."""
    is_followed: bool = True
    """Its certificate is one of the authority that signs now."""


class RefusedError(Exception):
    """A call is not let in."""

    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, why


class Gate:
    """Knows the keys of a server."""

    def __init__(self, settings: ServerSettings, audit: Audit) -> None:
        """Read the register.

        Args:
            settings: the server's.
            audit: where it is written down when a key is replaced.

        Raises:
            DeploymentError: if it is damaged.
        """
        self._settings, self._audit = settings, audit
        self._path = settings.state / REGISTER
        self._local = "" if settings.insecure else ensure_local_operator(settings.tls)
        self._stamp = self._now()
        self._register = Register(settings.state)
        self.refused: Counter[tuple[str, str]] = Counter()
        """How often each was refused since the start, by name and reason."""
        self._followed: dict[str, bytes] = {}
        """The newest authority's certificate with which each has called, by name."""

    def refresh(self) -> bool:
        """Read the register again where it has changed; returns whether it had."""
        stamp = self._now()
        if stamp == self._stamp:
            return False
        try:
            self._register, self._stamp = Register(self._settings.state), stamp
        except DeploymentError:
            return False  # it is written at this moment; what was known holds
        return True

    def labels(self) -> dict[str, Labels]:
        """Return the labels of every device that may call, by name."""
        return {one.name: one.labels for one in self._register.matching({})}

    @property
    def register(self) -> Register:
        """Who may call, as it was read last."""
        return self._register

    def behind(self) -> list[str]:
        """Return who has not called yet with a certificate of the authority that signs now."""
        newest = self._settings.tls.authority.read_bytes()
        return [
            one.name for one in self._register.valid() if self._followed.get(one.name) != newest
        ]

    def why_refused(self, name: str) -> str:
        """Return why who was let in by this name is no longer, "" if it still is."""
        if self._settings.insecure:
            return ""
        return _why_not(self._register.everybody.get(name))

    def guarded(self, call: Call, role: Role) -> grpc.RpcMethodHandler:
        """Return a call that is made only for who may make it."""

        def handler(requests: Requests, context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                who = self._caller(context, role)
                yield from call(who, requests, context)
            except RefusedError as error:
                context.abort(error.code, error.why)
            except AirtuneError as error:  # of this machine: a full disk, a damaged file
                log.error("%s", error)
                context.abort(grpc.StatusCode.INTERNAL, str(error))

        return grpc.stream_stream_rpc_method_handler(handler)

    def _caller(self, context: Any, role: Role) -> Caller:
        """Return who calls.

        Raises:
            RefusedError: if nobody of this server's, or not one with the right.
        """
        peer = str(context.peer())
        if self._settings.insecure:
            return _believed(context.invocation_metadata(), role, peer)
        [certificate] = context.auth_context()["x509_pem_cert"]
        owner, public = self._owner(certificate, peer)
        if not _may(owner.role, role):
            raise RefusedError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{owner.name} has the role {owner.role}, which does not allow this; {role} does",
            )
        is_followed = self._is_followed(owner.name, certificate)
        return Caller(owner.name, owner.role, peer, public, is_followed)

    def _owner(self, certificate: bytes, peer: str) -> tuple[Registered, str]:
        """Return whose a certificate is, and its key; a new key that is used is in place from now.

        Raises:
            RefusedError: if it is nobody's, or was revoked.
        """
        public = _public_in(certificate)
        if public == self._local:
            return Registered(LOCAL, public, fingerprint_of(public), "admin"), public
        self.refresh()
        found = self._register.owner_of(public)
        why = _why_not(found)
        if found is None or why:
            self.refused[found.name if found else "", why] += 1
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, why)
        if public == found.next:
            found = Register(self._settings.state).take_over(found.name)
            self._audit.note("renew", of=found.name, peer=peer, key=found.fingerprint)
        return found, public

    def _is_followed(self, name: str, certificate: bytes) -> bool:
        """Return whether a certificate is of the authority that signs now, and remember who has one."""
        newest = self._settings.tls.authority.read_bytes()
        is_followed = _is_of(newest, certificate)
        if is_followed:
            self._followed[name] = newest
        return is_followed

    def _now(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino


def _may(has: Role, needs: Role) -> bool:
    if "device" in (has, needs):
        return has == needs
    return OPERATORS.index(has) >= OPERATORS.index(needs)


def _why_not(owner: Registered | None) -> str:
    if owner is None:
        return "the server does not know this key"
    if owner.revoked:
        return f"its key {owner.fingerprint} was revoked on {owner.revoked}"
    return ""


def _believed(metadata: Metadata | None, role: Role, peer: str) -> Caller:
    """Return who calls a server without keys, as it says itself."""
    try:
        name = check_name(value_of(metadata, DEVICE_KEY) or LOCAL)
    except DeploymentError as error:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    return Caller(name, "device" if role == "device" else "admin", peer)


@lru_cache(maxsize=4096)
def _is_of(authority: bytes, certificate: bytes) -> bool:
    return is_issued_by(authority, certificate)


@lru_cache(maxsize=4096)
def _public_in(certificate: bytes) -> str:
    return public_in(certificate)
