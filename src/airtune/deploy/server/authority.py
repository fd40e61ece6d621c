"""Certificates: an authority of one's own, and what it signs for server, devices and operators.

All prove themselves to one another by TLS, each with a certificate of this authority. All are made
here and nothing leaves the machine:

    ca.crt  ca.key          the authority; the key never leaves the server
    server.crt  server.key  names and addresses under which devices call, in its SAN
    local.crt  local.key    the operator that commands on this machine are
    former.key              while the authority is replaced: the key of the former one

While the authority is replaced, ca.crt holds the new certificate and the former one, so that who
reads it trusts both: the new one signs devices and operators, the former one the server, until all
devices have the new ca.crt. A certificate says that a key was accepted once; whether it still is,
the register says.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock

from airtune.deploy import NEEDS_EXTRA
from airtune.deploy.keys import (
    hash_of,
    make_device_key,
    private_bytes,
    public_in,
    public_text,
    read_public_key,
    write_private,
)
from airtune.errors import DeploymentError, MissingExtraError
from airtune.records import storage, write_atomically

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise MissingExtraError(NEEDS_EXTRA) from error

TLS_LOCK = "lock"
"""Held while certificates are changed, in their folder."""
VALID_DAYS = 825
"""Longest life of a server certificate that common TLS libraries accept."""
AUTHORITY_DAYS = 3650
BACKDATED = timedelta(hours=24)
"""Certificates begin to hold this long before they are made: clocks of devices differ."""
RENEWED = timedelta(days=30)
"""A server's certificate is made anew when it ends within this time."""
Signer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where the authority and the server's certificate are."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificates that devices check the server's against; the newest is the first."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Signs devices and operators, and the server where no authority is being replaced."""
        return self.folder / "ca.key"

    @property
    def former_key(self) -> Path:
        """Signs the server while the authority is being replaced."""
        return self.folder / "former.key"

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

    @property
    def stamp(self) -> tuple[int, ...]:
        """Changes whenever a certificate is replaced."""
        paths = (self.authority, self.certificate, self.key)
        return tuple(path.stat().st_mtime_ns for path in paths if path.is_file())


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
    with _changing(files):
        if not files.certificate.is_file() or _lacks(_server_certificate(files), hosts):
            _make_certificate(files, hosts)
    return files


def replace_certificate(files: ServerFiles, *, if_ends_soon: bool = False) -> bool:
    """Make the server a new key and certificate for the names it has; returns whether it did.

    Args:
        files: where they are.
        if_ends_soon: only where the certificate ends within `RENEWED`.

    Raises:
        DeploymentError: if there is none to replace.
    """
    with _changing(files):
        old = _server_certificate(files)
        if if_ends_soon and not _lacks(old, ()):
            return False
        _make_certificate(files, _hosts(old))
    return True


def replace_authority(files: ServerFiles) -> None:
    """Begin to replace the authority: both are trusted, the new one signs devices and operators.

    Raises:
        DeploymentError: if it is being replaced already.
    """
    with _changing(files):
        if files.former_key.is_file():
            raise DeploymentError(
                "the authority is being replaced already; end that first: "
                "airtune server rotate --finish"
            )
        former, former_key = _signer(files)
        key, certificate = _new_authority()
        # whichever of these steps is the last, the keys that are there have their certificates
        write_atomically(files.authority, _pem(certificate) + _pem(former))
        write_private(files.former_key, private_bytes(former_key))
        write_private(files.authority_key, private_bytes(key))


def finish_authority(files: ServerFiles) -> None:
    """Trust the new authority alone; the server's certificate is then one of it.

    Raises:
        DeploymentError: if none is being replaced.
    """
    with _changing(files):
        if not files.former_key.is_file():
            raise DeploymentError(
                "no authority is being replaced; begin with airtune server rotate --authority"
            )
        hosts = _hosts(_server_certificate(files))
        files.former_key.unlink()
        _make_certificate(files, hosts)
        write_atomically(files.authority, _pem(_signer(files)[0]))


def ensure_authority(folder: Path) -> ServerFiles:
    """Return the files of an authority, made where there is none.

    Raises:
        DeploymentError: if there is a certificate without its key.
        StorageError: if nothing can be written there.
    """
    files = ServerFiles(folder)
    with _changing(files):
        if files.authority.is_file() and not files.authority_key.is_file():
            raise DeploymentError(
                f"{files.authority_key} is missing, the key of the authority that all devices trust: "
                f"restore it, or remove {files.authority} and give every device the new one"
            )
        if not files.authority.is_file():
            key, certificate = _new_authority()
            write_private(files.authority_key, private_bytes(key))
            write_atomically(files.authority, _pem(certificate))
    return files


def issue_certificate(folder: Path, name: str, public: str) -> bytes:
    """Return a certificate, in PEM, by which the holder of a key passes the server's TLS.

    It holds for as long as the authority: a key that is revoked is refused by the register.

    Args:
        folder: of the authority, made where there is none.
        name: of the device or operator.
        public: its public key, as `read_public_key` returns it.
    """
    authority, signer = _signer(ensure_authority(folder))
    key = serialization.load_ssh_public_key(public.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentError(f"the key of {name} is no elliptic-curve key: {public[:40]!r}")
    certificate = (
        _builder(authority.subject, _named(name), key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return _pem(certificate)


def is_issued_by(authority: bytes, certificate: bytes) -> bool:
    """Return whether a certificate is signed by the newest authority of a ca.crt; both in PEM."""
    found, newest = map(x509.load_pem_x509_certificate, (certificate, authority))
    try:
        found.verify_directly_issued_by(newest)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def ensure_local_operator(files: ServerFiles) -> str:
    """Return the public key by which commands on this machine are let in, made where it is missing.

    It is in the state folder, so who can read that folder is an administrator.
    """
    is_made = files.local_key.is_file() and files.local_certificate.is_file()
    if not is_made:
        files.local_key.unlink(missing_ok=True)
        make_device_key(files.local_key)
    authority = ensure_authority(files.folder).authority.read_bytes()
    if not is_made or not is_issued_by(authority, files.local_certificate.read_bytes()):
        public = read_public_key(files.local_key.with_suffix(".pub"))
        write_atomically(files.local_certificate, issue_certificate(files.folder, "local", public))
    return public_in(files.local_certificate.read_bytes())


@contextmanager
def _changing(files: ServerFiles) -> Iterator[None]:
    """Hold the folder: the server and commands both write it."""
    with storage(files.folder):
        files.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(files.folder / TLS_LOCK):
        yield


def _new_authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = _named(f"airtune authority {hash_of(public_text(key.public_key()))[:8]}")
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return key, certificate


def _make_certificate(files: ServerFiles, hosts: Sequence[str]) -> None:
    authority, signer = _signer(files, of_server=True)
    key = ec.generate_private_key(ec.SECP384R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        _builder(authority.subject, _named("airtune server"), key.public_key(), VALID_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_private(files.key, private_bytes(key))
    write_atomically(files.certificate, _pem(certificate))


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


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
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _server_certificate(files: ServerFiles) -> x509.Certificate:
    try:
        found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise DeploymentError(
            f"{files.certificate} is no server certificate ({error}); remove it and start again"
        ) from error
    return found


def _lacks(certificate: x509.Certificate, hosts: Sequence[str]) -> bool:
    """Return whether a certificate is not for one of the hosts, or ends soon."""
    ends_soon = certificate.not_valid_after_utc < datetime.now(UTC) + RENEWED
    return ends_soon or not {str(_general(host).value) for host in hosts} <= set(
        _hosts(certificate)
    )


def _hosts(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _signer(files: ServerFiles, *, of_server: bool = False) -> Signer:
    """Return the authority that signs: devices and operators, or the server."""
    path = files.former_key if of_server and files.former_key.is_file() else files.authority_key
    try:
        known = x509.load_pem_x509_certificates(files.authority.read_bytes())
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise DeploymentError(
            f"the authority in {files.folder} cannot be read ({error}); restore it, or remove the "
            "folder and give every device the new ca.crt"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(f"{path} is no elliptic-curve key; restore it")
    mine = [one for one in known if one.public_key() == key.public_key()]
    if not mine:
        raise DeploymentError(
            f"{path} is the key of no certificate in {files.authority}; restore it"
        )
    return mine[0], key
