"""CURVE keys in files: who a policy server is, and who its stations are.

server:   KEYS/server.key  KEYS/server.pub  KEYS/stations/NAME.pub
station:  KEYS/station.key KEYS/server.pub

A file has a line `public KEY`, and `secret KEY` if it is one (mode 0600); keys in Z85, lines with # are for people.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq

from agent.config import NAME_PATTERN
from agent.errors import BadInput

SERVER_KEY: Final = "server.key"
SERVER_PUB: Final = "server.pub"
STATION_KEY: Final = "station.key"
STATIONS: Final = "stations"

MAX_FILE_BYTES: Final = 4096

MAKE: Final = "Make keys with `so-agent policy keygen`; docs/remote-policy.md says which file goes where."


@dataclass(frozen=True)
class Pair:
    """A key of one's own, in Z85."""

    public: bytes
    secret: bytes = field(repr=False)


def keygen(folder: Path, station: str | None = None) -> list[Path]:
    """Make the server's pair where there is none, and a station's if one is named. The files that were made.

    Raises BadInput when the pair that was asked for is already there, in part or whole.
    """
    if station is not None and not re.fullmatch(NAME_PATTERN, station):
        raise BadInput(f"{station!r} is not a station's name.", "Names have lower case letters, digits, - and _.")
    server = folder / SERVER_KEY
    own = folder / STATIONS / f"{station}.key"
    wanted = [own] if station else [server]
    if station and not (folder / SERVER_PUB).exists():
        wanted.insert(0, server)
    for secret in wanted:
        for path in (secret, secret.with_suffix(".pub")):
            if path.exists():
                raise BadInput(
                    f"{path} is already there.",
                    "Keys are never overwritten: whoever has its other half would be locked out. Move it away first.",
                )
    made = []
    try:
        for secret in wanted:
            secret.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made += _write_pair(secret)
    except OSError as error:
        raise BadInput(f"Cannot write keys: {error}.", "Name a folder of your own.") from error
    return made


def read_server(folder: Path) -> Pair:
    """The server's own pair. Raises BadInput."""
    return _read_pair(folder / SERVER_KEY)


def read_station(folder: Path) -> tuple[Pair, bytes]:
    """On a station: its own pair and the server's public key. Raises BadInput."""
    return _read_pair(folder / STATION_KEY), read_public(folder / SERVER_PUB)


def read_stations(folder: Path) -> tuple[dict[bytes, str], list[str]]:
    """On a server: public key -> name of every station that may connect, and what is wrong with other files."""
    known: dict[bytes, str] = {}
    problems = []
    for path in sorted((folder / STATIONS).glob("*.pub")):
        try:
            if not re.fullmatch(NAME_PATTERN, path.stem):
                raise BadInput(f"{path} does not have the name of a station.")
            known.setdefault(read_public(path), path.stem)
        except BadInput as error:
            problems.append(error.message)
    return known, problems


def read_public(path: Path) -> bytes:
    """Raises BadInput."""
    return _keys(path, "public")["public"]


def _read_pair(path: Path) -> Pair:
    keys = _keys(path, "public", "secret")
    if path.stat().st_mode & 0o077:
        raise BadInput(f"{path} is a secret key, and others than its owner may read it.", f"Run chmod 600 {path}.")
    if zmq.curve_public(keys["secret"]) != keys["public"]:
        raise BadInput(f"{path} holds a public key that does not belong to the secret one.", MAKE)
    return Pair(keys["public"], keys["secret"])


def _keys(path: Path, *kinds: str) -> dict[str, bytes]:
    try:
        with path.open(encoding="ascii") as file:
            lines = [line.split() for line in file.read(MAX_FILE_BYTES).splitlines() if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Cannot read the key file {path}: {error}.", MAKE) from error
    keys = {words[0]: words[1] for words in lines if len(words) == 2}
    for kind in kinds:
        if not _Z85.fullmatch(keys.get(kind, "")):
            raise BadInput(f"{path} holds no {kind} key.", MAKE)
    return {kind: keys[kind].encode() for kind in kinds}


def _write_pair(path: Path) -> list[Path]:
    public, secret = zmq.curve_keypair()
    both = f"public {public.decode()}\nsecret {secret.decode()}\n"
    _write(path, f"# Secret: whoever has this file is believed to be {path.stem}.\n{both}", 0o600)
    _write(path.with_suffix(".pub"), f"# Public key of {path.stem}.\npublic {public.decode()}\n", 0o644)
    if _read_pair(path) != Pair(public, secret) or read_public(path.with_suffix(".pub")) != public:
        raise BadInput(f"{path} was written, and reads differently.", "Is the disk full?")
    return [path, path.with_suffix(".pub")]


def _write(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(text)
        file.flush()
        os.fsync(descriptor)


_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""32 bytes in ZeroMQ's base 85 (RFC 32)."""
