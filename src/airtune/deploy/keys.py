"""Private and public keys of devices, operators and the server: made, read, written.

Keys are on the curve P-384, or one that its owner made itself. Private keys are written for their
owner alone (mode 0600).
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airtune.deploy import NEEDS_EXTRA
from airtune.errors import DeploymentError, MissingExtraError
from airtune.records import storage

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
except ImportError as error:
    raise MissingExtraError(NEEDS_EXTRA) from error


def days_left(certificate: Path) -> float:
    """Return in how many days the first certificate of a file ends.

    Raises:
        DeploymentError: if it holds none, or does not hold at this machine's time.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise DeploymentError(f"{certificate} is no certificate ({error})") from error
    now, begins, ends = datetime.now(UTC), found.not_valid_before_utc, found.not_valid_after_utc
    if not begins <= now < ends:
        raise DeploymentError(
            f"{certificate} holds from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}, and this machine's "
            f"clock says {now:%Y-%m-%d}: set the clock; if it is right, the certificate and its "
            "key must be replaced"
        )
    return (ends - now) / timedelta(days=1)


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
    write_private(path, private_bytes(key, serialization.PrivateFormat.OpenSSH))
    public = path.with_suffix(".pub")
    with storage(public):
        public.write_bytes(public_text(key.public_key()) + b"\n")
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
    return public_text(key).decode()


def public_of(path: Path) -> str:
    """Return the public half of a private key, as one line of text.

    Raises:
        DeploymentError: if the key cannot be read, or is of another kind.
    """
    return public_text(_read_key(path).public_key()).decode()


def fingerprint_of(public: str) -> str:
    """Return a short hash of a public key, for people to compare.

    >>> fingerprint_of("ecdsa-sha2-nistp384 AAAA")
    'c766424a5bb88fcc'
    """
    return hashlib.sha256(public.encode()).hexdigest()[:16]


def hash_of(content: bytes) -> str:
    """Return a short hash, by which two ends find out whether they have the same ca.crt."""
    return hashlib.sha256(content).hexdigest()[:32]


def signing_request(path: Path) -> bytes:
    """Return a request, in PEM, to certify a private key; signed by it, so it proves who has it.

    Raises:
        DeploymentError: if the key cannot be read, or is of another kind.
    """
    key = _read_key(path)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(read_private_key(path), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(
            f"{path} must be an elliptic-curve key (ecdsa), got {type(key).__name__}"
        )
    return key


def public_of_request(request: bytes) -> str:
    """Return the public key of a request that is signed by its private key, as one line of text.

    Raises:
        DeploymentError: if it is none, of another kind, or not signed by its key.
    """
    try:
        found = x509.load_pem_x509_csr(request)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeploymentError(f"this is no signing request ({error})") from error
    key = found.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not found.is_signature_valid:
        raise DeploymentError("a signing request needs an elliptic-curve key that has signed it")
    return public_text(key).decode()


def private_bytes(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    """Return a private key in PEM, not locked."""
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def public_text(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as one line, as OpenSSH has it."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file that its owner alone may read, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
