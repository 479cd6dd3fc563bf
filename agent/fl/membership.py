"""Whether this station takes part in a fleet, and with which data: small files in `state_dir/federation`.

enrolment.json   the fleet's address, and whether taking part is paused
consent.json     the datasets that may be learnt from
ca.crt           the one authority that is trusted
station.key .pub the key by which the fleet knows this station

The files are the truth: the command line may change them while no agent runs. Every change is on the disk, whole, when
the call returns.
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from agent.clock import Clock
from agent.config import NAME_PATTERN, StationConfig
from agent.errors import BadInput, Refused

INFO: Final = Path("meta/info.json")
_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9][A-Za-z0-9.-]*):([1-9]\d{0,4})")


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `enrolment.json` holds."""

    superlink: str  # HOST:PORT
    since: str  # ISO time
    fingerprint: str  # of this station's key
    paused: bool = False


class Consent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `consent.json` holds: dataset -> since when. A dataset that is not in here is never learnt from."""

    datasets: dict[str, str] = {}


class Membership:
    """Reads and changes the files. Raises BadInput where one of them cannot be read."""

    def __init__(self, config: StationConfig, clock: Clock) -> None:
        self._station = config.station
        self._datasets = config.paths.datasets
        self._clock = clock
        self.folder = config.paths.federation.absolute()
        self.authority = self.folder / "ca.crt"
        self.key = self.folder / "station.key"
        self.public_key = self.folder / "station.pub"
        self._enrolment = self.folder / "enrolment.json"
        self._consent = self.folder / "consent.json"

    @property
    def enrolment(self) -> Enrolment | None:
        return _read(self._enrolment, Enrolment)

    @property
    def consent(self) -> Consent:
        return _read(self._consent, Consent) or Consent()

    @property
    def learnable(self) -> list[Path]:
        """The datasets with consent that hold something."""
        names = sorted(self.consent.datasets)
        return [self._datasets / name for name in names if (self._datasets / name / INFO).is_file()]

    def datasets(self) -> list[str]:
        """What there is to consent to."""
        return sorted(path.parent.parent.name for path in self._datasets.glob(f"*/{INFO}"))

    def enroll(self, superlink: str, authority: str, key: str | None) -> Enrolment:
        """Take part in a fleet, or in another one: `authority` and `key` are the contents of PEM files.

        Without a key, the one that is there is kept, or a new one made. Raises BadInput.
        """
        from agent.fl import certificates, station_key

        match = _ADDRESS.fullmatch(superlink)
        if not match or int(match[2]) > 65535:
            raise BadInput(f"{superlink!r} is no address of a fleet.", "Give host and port: --superlink HOST:PORT.")
        certificates.check_authority(authority.encode())
        private = key.encode() if key else self.key.read_bytes() if self.key.is_file() else station_key.generate()
        public = station_key.public_of(private, self._station)
        enrolment = Enrolment(superlink, self._now(), station_key.fingerprint(public))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            certificates.write_private(self.key, private)
            write(self.public_key, public.encode())
            write(self.authority, authority.encode())
            write(self._enrolment, msgspec.json.encode(enrolment))  # last: it is what counts
        except OSError as error:
            raise BadInput(f"Cannot write to {self.folder}: {error.strerror}.", "Free disk space.") from error
        return enrolment

    def public_line(self) -> str:
        """What the fleet registers."""
        return self.public_key.read_text(encoding="utf-8").strip()

    def leave(self) -> None:
        """Take part no longer. The key stays: it can be enrolled again. Raises Refused when it does not take part."""
        self._enrolled()
        self._enrolment.unlink()
        sync(self.folder)

    def pause(self, paused: bool) -> Enrolment:
        """Raises Refused when the station takes no part."""
        enrolment = msgspec.structs.replace(self._enrolled(), paused=paused)
        write(self._enrolment, msgspec.json.encode(enrolment))
        return enrolment

    def give_consent(self, dataset: str, on: bool) -> Consent:
        """Raises BadInput for a dataset that is not there."""
        known = self.datasets()
        held = dict(self.consent.datasets)
        if on and (not re.fullmatch(NAME_PATTERN, dataset) or dataset not in known):
            raise BadInput(
                f"There is no dataset {dataset}.",
                f"There are {', '.join(known)}." if known else "Record one with `so-agent record start`.",
            )
        if on:
            held.setdefault(dataset, self._now())
        elif held.pop(dataset, None) is None and dataset not in known:
            raise BadInput(f"There is no dataset {dataset}.", f"There are {', '.join(known)}.")
        consent = Consent(held)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(self._consent, msgspec.json.encode(consent))
        return consent

    def _enrolled(self) -> Enrolment:
        enrolment = self.enrolment
        if enrolment is None:
            raise Refused("This station takes part in no fleet.", "Run `so-agent fl enroll` first.")
        return enrolment

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC).isoformat(timespec="seconds")


def write(path: Path, data: bytes) -> None:
    """Replace a file at once, and have it on the disk."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read[T: msgspec.Struct](path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"Cannot read {path}: {error}.", "Remove it, and run `so-agent fl enroll` again.") from error
