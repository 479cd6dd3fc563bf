"""The key by which a fleet knows a station: NIST P-384 in OpenSSH's format, which is what Flower reads."""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import BadInput


def generate() -> bytes:
    """A new private key."""
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_of(private: bytes, comment: str) -> str:
    """The line of a public key file, with a comment. Raises BadInput when this is no private key that Flower takes."""
    try:
        key = serialization.load_ssh_private_key(private, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput(
            f"This is no private key that can be read: {error}.",
            "Make one with `ssh-keygen -t ecdsa -b 384 -N '' -f KEY`, or leave out --key.",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadInput("Flower takes only elliptic curve keys (ECDSA).", "Make one: `ssh-keygen -t ecdsa -b 384`.")
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{line.decode()} {comment}\n"


def check_public(line: str) -> str:
    """A public key line, stripped to its first two words. Raises BadInput for one that Flower does not take."""
    words = line.split()
    try:
        key = serialization.load_ssh_public_key(" ".join(words[:2]).encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadInput(
            f"This is no public key that can be read: {error}.", "Give the line that `so-agent fl enroll` printed."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise BadInput("Flower takes only keys on NIST's curves (ecdsa-sha2-nistp384).", "Make one with `fl enroll`.")
    return " ".join(words[:2])


def public_bytes(line: str) -> bytes:
    """A public key as Flower's control API takes it (PEM). Raises BadInput."""
    key = serialization.load_ssh_public_key(check_public(line).encode())
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(line: str) -> str:
    """As `ssh-keygen -l` prints it. Raises BadInput."""
    blob = base64.b64decode(check_public(line).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def read_public(path: Path) -> str:
    """Raises BadInput."""
    try:
        return check_public(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Cannot read the key {path}: {error}.", "Give the file of a public key.") from error
