"""A certificate authority of the fleet's own, and its server's certificate. No openssl binary needed.

Stations trust this one authority and no other, so a certificate of a public authority does not let anyone pretend to be
the fleet. Errors of the family are raised by the caller; here a file that cannot be read is a BadInput.
"""

import datetime
import ipaddress
import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.errors import BadInput

AUTHORITY_DAYS: Final = 3650
"""Replacing it means a visit to every station."""

SERVER_DAYS: Final = 825
"""The longest that current TLS clients accept."""

RENEW_BEFORE_DAYS: Final = 30

SKEW: Final = datetime.timedelta(hours=1)
"""A station's clock may be behind, and without a battery it often is after a start."""

ALWAYS: Final = ("localhost", "127.0.0.1", "::1")
"""The SuperLink itself listens on loopback, under the same certificate."""


def make_authority(certificate: Path, key: Path, name: str) -> None:
    """Write a new authority. The key is for its owner's eyes only."""
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.datetime.now(datetime.UTC) - SKEW
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    write_private(key, _pem(private))
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def make_server(certificate: Path, key: Path, names: tuple[str, ...], authority: tuple[Path, Path]) -> None:
    """Write a new certificate for the server under `names` (host names and addresses), signed by the authority.

    Raises BadInput when the authority cannot be read.
    """
    issuer, issuer_key = read_certificate(authority[0]), _read_key(authority[1])
    private = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime.now(datetime.UTC) - SKEW
    signed = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else ALWAYS[0])]))
        .issuer_name(issuer.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=SERVER_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_alternative(name) for name in dict.fromkeys((*names, *ALWAYS))]),
            critical=False,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    write_private(key, _pem(private))
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def read_certificate(path: Path) -> x509.Certificate:
    """Raises BadInput."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"Cannot read the certificate {path}: {error}.", "It must be a PEM file.") from error


def check_authority(pem: bytes) -> x509.Certificate:
    """A certificate that a station may trust: an authority that has not expired. Raises BadInput."""
    try:
        found = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise BadInput(
            f"This is no certificate: {error}.", "Give the ca.crt that `so-agent fleet init` made."
        ) from error
    try:
        is_authority = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise BadInput(
            "This certificate is not an authority's, so nothing could be checked against it.",
            "Give ca.crt, not server.crt.",
        )
    if found.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise BadInput(
            f"The authority's certificate expired on {found.not_valid_after_utc:%Y-%m-%d}.",
            "Ask whoever runs the fleet for the present one; or is this machine's clock wrong?",
        )
    return found


def days_left(path: Path) -> float:
    """Until a certificate expires. Raises BadInput."""
    return (read_certificate(path).not_valid_after_utc - datetime.datetime.now(datetime.UTC)) / datetime.timedelta(
        days=1
    )


def fingerprint(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate in hex, to be compared over the telephone."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, also while it is being written; never over an old one's mode."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(
            f"Cannot read the authority's key {path}: {error}.",
            "It is needed to sign a new server certificate; bring it back from where it is kept.",
        ) from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise BadInput(f"{path} is not a key that `so-agent fleet init` made.", "Bring back the right one.")
    return found


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
