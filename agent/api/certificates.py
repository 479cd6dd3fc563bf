"""Certificate files that a configuration names: whether they can be used, in sentences that name the file."""

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from agent.errors import BadInput

NO_PASSWORD = ""
"""A key with a password would have OpenSSL ask for it on the terminal, where nobody is."""


@dataclass(frozen=True)
class About:
    """For whom a certificate was made, and until when."""

    names: tuple[str, ...]  # host names and addresses
    expires_at: datetime.datetime

    def covers(self, name: str) -> bool:
        """Whether a browser that opens `name` accepts it. A `*` stands for one label, as in TLS."""
        wanted = name.lower()
        return any(
            wanted == known or (known.startswith("*.") and wanted.partition(".")[2] == known[2:])
            for known in map(str.lower, self.names)
        )


def require_pair(certificate: Path, key: Path) -> None:
    """Raises BadInput when they cannot be read, or do not belong together."""
    for path in (certificate, key):
        require_readable(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=NO_PASSWORD)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadInput(
                f"{key} is not the private key of {certificate}.", "Name two files that were made together."
            ) from error
        raise BadInput(
            f"{certificate} and {key} cannot be used: {error.reason or error}.",
            "They must be PEM files: a certificate, and its private key without a password.",
        ) from error


def require_authority(file: Path) -> None:
    """Raises BadInput when nothing could be checked against it."""
    require_readable(file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        raise BadInput(
            f"{file} holds no certificate: {error.reason or error}.", "It must be the authority's, as a PEM file."
        ) from error


def about(certificate: Path) -> About:
    """Of a certificate that `require_pair` accepted."""
    from cryptography import x509  # 0.1 s that a surface does not need

    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return About((), found.not_valid_after_utc)
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return About((*names.get_values_for_type(x509.DNSName), *addresses), found.not_valid_after_utc)


def require_readable(path: Path) -> None:
    """Raises BadInput, with PermissionError as its cause where only the account is the wrong one."""
    try:
        with path.open("rb"):
            pass
    except PermissionError as error:
        raise BadInput(
            f"{path} may not be read by this account.",
            "It is for the account that the station runs under, or for root; run this as one of them.",
        ) from error
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}.", "Correct the path, or put the file there."
        ) from error
