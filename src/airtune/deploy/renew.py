"""How a device or an operator gets a certificate: by a code at first, later for a new key.

    NAME.key      NAME.crt        what it proves itself by; ca.crt beside them
    NAME.new.key  NAME.new.crt    of a renewal that is not finished

A new key takes the place of the old one only once its certificate is here, and the server takes the
old one until the new one has been used; so it may be cut off at any moment and goes on later.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from airtune.deploy.caller import Proof, ServerClient, check_server
from airtune.deploy.codes import EnrolmentCode, pin_of
from airtune.deploy.keys import make_device_key, public_in, public_of, signing_request
from airtune.errors import ConnectionFailedError, DeploymentError, KeyRefusedError
from airtune.records import storage, write_atomically
from airtune.wire.channel import ENROL, channel_credentials, open_channel

_TIMEOUT_S, _LEAST_S = 30.0, 1.0


def enrol_self(server: str, code: str, proof: Proof, *, name: str) -> bool:
    """Make this device a key and have the server certify it by a code; returns whether it did.

    A device that has a certificate keeps it, and the code is not used.

    Args:
        server: HOST:PORT of the server.
        code: as its operator has printed it.
        proof: where key, certificate and ca.crt will be.
        name: what this device is to be called.

    Raises:
        DeploymentError: if the code is none, or is another server's.
        KeyRefusedError: if the code is unknown, used up or expired, or the name is taken.
        ConnectionFailedError: if no server answers; that may pass.
        StorageError: if the files cannot be written.
    """
    if proof.key.is_file() and proof.certificate.is_file():
        return False
    said = EnrolmentCode.read(code)
    leaf, address = enrolling(server, said), f"{server.rpartition(':')[0]}:{said.port}"
    if not proof.key.is_file():
        make_device_key(proof.key)
    request = {"code": code.strip(), "name": name, "request": signing_request(proof.key).decode()}
    with open_channel(address, channel_credentials(leaf)) as channel:
        try:
            answer = channel.unary_unary(f"/{ENROL}/Sign")(
                json.dumps(request).encode(), timeout=_TIMEOUT_S
            )
        except grpc.RpcError as error:
            kind = (
                KeyRefusedError
                if error.code() is grpc.StatusCode.PERMISSION_DENIED
                else ConnectionFailedError
            )
            raise kind(
                f"the server at {address} does not enrol {name}: {error.details()}"
            ) from error
    keep(proof, json.loads(answer))
    return True


def enrolling(server: str, code: EnrolmentCode, *, timeout_s: float = _TIMEOUT_S) -> bytes:
    """Return the certificate of the server that a code is of, as it shows it where devices enrol.

    Args:
        server: HOST:PORT, where it takes calls.
        code: that it has made.
        timeout_s: seconds after which it is not waited for any longer.

    Raises:
        DeploymentError: if it enrols nobody at present, or another server answers.
        ConnectionFailedError: if no server answers at all; that may pass.
    """
    host, address = server.rpartition(":")[0], f"{server.rpartition(':')[0]}:{code.port}"
    try:
        leaf = ssl.get_server_certificate((host.strip("[]"), code.port), timeout=timeout_s)
    except OSError as error:
        check_server(server, None)
        raise DeploymentError(
            f"the server answers at {server}, but enrolment is closed at {address} "
            f"({error.strerror or error}): that port is open only while a code is valid (airtune "
            "device codes there), or a firewall keeps it shut"
        ) from error
    if pin_of(leaf.encode()) != code.pin:
        raise DeploymentError(
            f"the server at {address} is not the one that has made this code, or has another "
            "certificate since; ask for a new code"
        )
    return leaf.encode()


def await_enrolling(server: str, code: EnrolmentCode, *, wait_s: float = 15.0) -> None:
    """Wait until the server has opened the port where devices enrol.

    Raises:
        DeploymentError: if it does not, or another server answers there.
        ConnectionFailedError: if no server answers at all.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            enrolling(server, code, timeout_s=max(until - time.monotonic(), _LEAST_S))
            return
        except DeploymentError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def follow(link: ServerClient, said: Mapping[str, Any]) -> str:
    """Do what a server says of certificates and keys; returns what was done, "" if nothing.

    Raises:
        AirtuneError: as `renew` and `keep`.
    """
    if link.proof is None or not {"proof", "renew"} & said.keys():
        return ""
    if "renew" in said:
        renew(link)
        return "this device has a new key"
    keep(link.proof, said["proof"])
    link.call("Hello")
    return "this device has a new certificate and ca.crt"


def renew(link: ServerClient) -> None:
    """Take a new key, and have the server take it; the files of the link's proof are replaced.

    Raises:
        DeploymentError: if what the server answers is not of the new key.
        KeyRefusedError: if the server does not take it.
        ConnectionFailedError: if no server answers.
        StorageError: if the files cannot be written.
    """
    if link.proof is None:
        raise DeploymentError("a server without TLS has no keys to renew")
    finish_renewal(link.proof)
    fresh = _fresh(link.proof)
    if not fresh.key.is_file():
        make_device_key(fresh.key)
    keep(fresh, link.call("Renew", request=signing_request(fresh.key).decode()))
    finish_renewal(link.proof)
    link.call("Hello")  # from here on the server knows that the new key is in use


def finish_renewal(proof: Proof) -> None:
    """Put a new key and its certificate in place, where a renewal has got so far."""
    fresh = _fresh(proof)
    if not fresh.certificate.is_file():
        return
    with storage(proof.certificate):
        for path, target in (
            (fresh.key, proof.key),
            (fresh.key.with_suffix(".pub"), proof.key.with_suffix(".pub")),
            (fresh.certificate, proof.certificate),
        ):
            if path.is_file():
                path.replace(target)


def keep(proof: Proof, said: Mapping[str, Any]) -> None:
    """Write a certificate, and the authorities to trust, that the server has sent.

    Raises:
        DeploymentError: if they are not of this key, or none.
        StorageError: if they cannot be written.
    """
    certificate, authority = (str(said.get(key)).encode() for key in ("certificate", "authority"))
    try:
        is_mine = public_in(certificate) == public_of(proof.key)
        public_in(authority)
    except ValueError as error:
        raise DeploymentError(f"the server has sent no certificate ({error})") from error
    if not is_mine:
        raise DeploymentError(f"the server has sent a certificate of another key than {proof.key}")
    # who trusts the new authority and has the old certificate, or the other way round, still gets in
    write_atomically(proof.authority, authority)
    write_atomically(proof.certificate, certificate)


def _fresh(proof: Proof) -> Proof:
    def beside(path: Path) -> Path:
        return path.with_name(f"{path.stem}.new{path.suffix}")

    return Proof(proof.authority, beside(proof.key), beside(proof.certificate))
