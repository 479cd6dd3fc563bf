"""The certificates of a fleet, made as docs/mqtt.md says, and some that nobody should have."""

import datetime
import subprocess
from pathlib import Path

from aiomqtt import TLSParameters
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "configs" / "mosquitto"


class Authority:
    """A fleet's own authority, in one folder."""

    def __init__(self, folder: Path) -> None:
        """A new one, or the one that lies there already."""
        self.folder = folder
        if not (folder / "ca.crt").exists():
            self._run("authority")

    def broker(self, *names: str) -> None:
        self._run("broker", *names)

    def client(self, *names: str) -> None:
        self._run("client", *names)

    def _run(self, *args: str) -> None:
        subprocess.run([SHIPPED / "certificates.sh", self.folder, *args], check=True, capture_output=True, timeout=30)

    def tls(self, name: str) -> TLSParameters:
        """For a peer that is called `name`."""
        return TLSParameters(*(str(self.folder / file) for file in ("ca.crt", f"{name}.crt", f"{name}.key")))

    def settings(self, name: str, ca: Path | None = None) -> dict[str, str]:
        """For the configuration of a station."""
        return {
            "ca": str(ca or self.folder / "ca.crt"),
            "cert": str(self.folder / f"{name}.crt"),
            "key": str(self.folder / f"{name}.key"),
        }

    def expired(self, name: str) -> None:
        """A certificate that this authority signed, and that ended yesterday."""
        issuer = x509.load_pem_x509_certificate((self.folder / "ca.crt").read_bytes())
        issuer_key = serialization.load_pem_private_key((self.folder / "ca.key").read_bytes(), None)
        assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        day = datetime.timedelta(days=1)
        now = datetime.datetime.now(datetime.UTC)
        signed = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * day)
            .not_valid_after(now - day)
            .sign(issuer_key, hashes.SHA256())
        )
        (self.folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def shipped_settings(authority: Authority) -> list[str]:
    """The broker configuration of this repository, with its folder and its port made those of a test."""
    text = (SHIPPED / "so-agent.conf").read_text().replace("/etc/mosquitto/so-agent/acl", str(SHIPPED / "acl"))
    text = text.replace("/etc/mosquitto/so-agent", str(authority.folder))
    return [line for line in text.splitlines() if line and not line.startswith(("#", "listener "))]
