"""Certificates and keys: an authority of one's own, and certificates for all who take part.

Server, devices and operators prove themselves to one another by TLS, each with a certificate of this
authority. All are made here and nothing leaves the machine:

    ca.crt  ca.key          the authority; the key never leaves the server
    server.crt  server.key  names and addresses under which devices call, in its SAN
    NAME.key  .pub  .crt    of a device or an operator; EC P-384, or a key that it made itself

A certificate says that a key was accepted once; whether it still is, the register says.

Private keys are written for their owner alone (mode 0600).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airtune.errors import DeploymentError, MissingExtraError
from airtune.records import storage

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise MissingExtraError(
        "keys and certificates need the cryptography package; install it with "
        "pip install 'airtune[federation]'"
    ) from error

VALID_DAYS = 825
"""Longest life of a server certificate that common TLS libraries accept."""
AUTHORITY_DAYS = 3650
BACKDATED = timedelta(hours=24)
"""Certificates begin to hold this long before they are made: clocks of devices differ."""


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where the authority and the server's certificate are."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate that devices check the server's against."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Signs server certificates."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    @property
    def local_key(self) -> Path:
        """Of the operator that commands on this machine are."""
        return self.folder / "local.key"

    @property
    def local_certificate(self) -> Path:
        """Proves that key."""
        return self.folder / "local.crt"


def ensure_certificates(folder: Path, hosts: Sequence[str]) -> ServerFiles:
    """Return the server's certificates, made where they are missing or lack one of the hosts.

    The authority is made once and stays, so devices keep trusting the server.

    Args:
        folder: where they are.
        hosts: names and addresses under which devices reach the server.

    Raises:
        DeploymentError: if a file there is not what it should be.
        StorageError: if nothing can be written there.
    """
    files = ensure_authority(folder)
    if not files.certificate.is_file() or _lacks(files.certificate, hosts):
        _make_certificate(files, hosts)
    return files


def ensure_authority(folder: Path) -> ServerFiles:
    """Return the files of an authority, made where there is none.

    Raises:
        StorageError: if nothing can be written there.
    """
    files = ServerFiles(folder)
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not files.authority.is_file() or not files.authority_key.is_file():
        _make_authority(files)
    return files


def issue_certificate(folder: Path, name: str, public: str) -> bytes:
    """Return a certificate, in PEM, by which the holder of a key passes the server's TLS.

    It holds for as long as the authority: a key that is revoked is refused by the register.

    Args:
        folder: of the authority, made where there is none.
        name: of the device or operator.
        public: its public key, as `read_public_key` returns it.
    """
    authority, signer = _read_authority(ensure_authority(folder))
    key = serialization.load_ssh_public_key(public.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentError(f"the key of {name} is no elliptic-curve key: {public[:40]!r}")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(authority.subject, subject, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def public_in(certificate: bytes) -> str:
    """Return the key that a certificate, in PEM, is for, as one line of text."""
    key = x509.load_pem_x509_certificate(certificate).public_key()
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(*form).decode()


def read_private_key(path: Path) -> bytes:
    """Return a private key as PKCS 8 in PEM, whatever ssh-keygen or openssl has written.

    Raises:
        DeploymentError: if it is none, or locked by a passphrase.
    """
    try:
        content = path.read_bytes()
        is_ssh = b"OPENSSH" in content[:64]
        load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
        key = load(content, None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeploymentError(
            f"{path} is no private key that can be read ({error}); make one without a passphrase: "
            "ssh-keygen -t ecdsa -b 384 -N '' -f device.key"
        ) from error
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def ensure_local_operator(files: ServerFiles) -> str:
    """Return the public key by which commands on this machine are let in, made where it is missing.

    It is in the state folder, so who can read that folder is an administrator.
    """
    if not files.local_key.is_file() or not files.local_certificate.is_file():
        files.local_key.unlink(missing_ok=True)
        public = read_public_key(make_device_key(files.local_key))
        with storage(files.local_certificate):
            files.local_certificate.write_bytes(issue_certificate(files.folder, "local", public))
    return public_in(files.local_certificate.read_bytes())


def make_device_key(path: Path) -> Path:
    """Write a new private key to `path` and its public half beside it; return the latter's path.

    Raises:
        DeploymentError: if there is a key already; it may be in use.
    """
    if path.exists():
        raise DeploymentError(
            f"there is a key at {path} already; revoke the device first, or remove the file"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(path, _private_bytes(key, serialization.PrivateFormat.OpenSSH))
    public = path.with_suffix(".pub")
    with storage(public):
        public.write_bytes(_public_text(key.public_key()) + b"\n")
    return public


def read_public_key(path: Path) -> str:
    """Return a device's public key as one line of text.

    Raises:
        DeploymentError: if it is none, or of another kind.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise DeploymentError(
            f"{path} is no public key ({error}); make one with "
            "ssh-keygen -t ecdsa -b 384 -f device.key and give device.key.pub"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentError(
            f"{path} must be an elliptic-curve key (ecdsa), got {type(key).__name__}; make one "
            "with ssh-keygen -t ecdsa -b 384"
        )
    return _public_text(key).decode()


def fingerprint_of(public: str) -> str:
    """Return a short hash of a public key, for people to compare.

    >>> fingerprint_of("ecdsa-sha2-nistp384 AAAA")
    'c766424a5bb88fcc'
    """
    return hashlib.sha256(public.encode()).hexdigest()[:16]


def _make_authority(files: ServerFiles) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "airtune authority")])
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    _write_private(files.authority_key, _private_bytes(key))
    with storage(files.authority):
        files.authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _make_certificate(files: ServerFiles, hosts: Sequence[str]) -> None:
    authority, signer = _read_authority(files)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "airtune server")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        _builder(authority.subject, name, key.public_key(), VALID_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write_private(files.key, _private_bytes(key))
    with storage(files.certificate):
        files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=not signs, key_cert_sign=signs, crl_sign=signs,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _lacks(certificate: Path, hosts: Sequence[str]) -> bool:
    """Return whether a certificate is not for one of the hosts, or ends within a month."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise DeploymentError(
            f"{certificate} is no server certificate ({error}); remove it and start again"
        ) from error
    ends_soon = loaded.not_valid_after_utc < datetime.now(UTC) + timedelta(days=30)
    return ends_soon or any(_general(host) not in list(names) for host in hosts)


def _read_authority(files: ServerFiles) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(files.authority.read_bytes())
        key = serialization.load_pem_private_key(files.authority_key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise DeploymentError(
            f"the authority in {files.folder} cannot be read ({error}); restore it, or remove the "
            "folder and give every device the new ca.crt"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(f"{files.authority_key} is no elliptic-curve key; restore it")
    return certificate, key


def _private_bytes(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _public_text(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _write_private(path: Path, content: bytes) -> None:
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
