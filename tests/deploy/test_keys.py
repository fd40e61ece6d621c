"""Certificates that TLS accepts, and only for the names they hold."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from airtune.deploy.caller import check_server
from airtune.deploy.keys import fingerprint_of, make_device_key, read_public_key
from airtune.deploy.server.authority import ensure_certificates
from airtune.errors import ConnectionFailedError, DeploymentError


class _Server:
    """A TLS server that greets and leaves."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            try:
                self._context.wrap_socket(connection, server_side=True).close()
            except (ssl.SSLError, OSError):
                return

    def close(self) -> None:
        self._socket.close()


def _called(server_tls: Path, authority: Path, host: str = "127.0.0.1") -> None:
    server = _Server(server_tls / "server.crt", server_tls / "server.key")
    try:
        check_server(f"{host}:{server.port}", authority)
    finally:
        server.close()


def test_a_device_trusts_its_server(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, ["127.0.0.1"])
    _called(tmp_path, files.authority)


def test_another_authority_is_refused(tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "a", ["127.0.0.1"])
    other = ensure_certificates(tmp_path / "b", ["127.0.0.1"])
    with pytest.raises(DeploymentError, match="does not prove itself"):
        _called(tmp_path / "a", other.authority)


def test_a_name_that_the_certificate_lacks_is_refused(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, ["edge.example.org"])
    with pytest.raises(DeploymentError, match="does not prove itself"):
        _called(tmp_path, files.authority)


def test_the_authority_stays_when_a_name_is_added(tmp_path: Path) -> None:
    before = ensure_certificates(tmp_path, ["127.0.0.1"])
    authority, certificate = before.authority.read_bytes(), before.certificate.read_bytes()
    after = ensure_certificates(tmp_path, ["127.0.0.1", "edge.example.org"])
    assert after.authority.read_bytes() == authority
    assert after.certificate.read_bytes() != certificate
    assert ensure_certificates(tmp_path, ["127.0.0.1"]).certificate.read_bytes() == (
        after.certificate.read_bytes()
    )


def test_nobody_answering_is_told_apart(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ConnectionFailedError, match="no server answers"):
        check_server(f"127.0.0.1:{port}", None)


def test_private_keys_are_the_owners_alone(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path / "tls", ["localhost"])
    make_device_key(tmp_path / "device.key")
    for path in (files.authority_key, files.key, tmp_path / "device.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_in_use_is_not_overwritten(tmp_path: Path) -> None:
    public = make_device_key(tmp_path / "device.key")
    with pytest.raises(DeploymentError, match="a key at"):
        make_device_key(tmp_path / "device.key")
    assert read_public_key(public).startswith("ecdsa-sha2-nistp384 ")
    assert len(fingerprint_of(read_public_key(public))) == 16


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pub"
    path.write_text("ssh-ed25519 nonsense")
    with pytest.raises(DeploymentError, match="no public key"):
        read_public_key(path)
