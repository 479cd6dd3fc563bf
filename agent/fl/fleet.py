"""The folder of a fleet: who may take part, what runs start from, and what came out of them.

ca.crt              goes to every station
ca.key              signs server certificates; best kept elsewhere
server.crt .key     of the gate and of the SuperLink behind it
stations/NAME.pub   a station whose key lies here may take part; taken away, it may not
policies/NAME/      bundles that runs start from
runs/RUN/           one run: what was asked for, and a folder for every round
flower/             what Flower keeps: FLWR_HOME
serve.json          where a running `so-agent fleet serve` can be reached, on loopback only
*.log

Needs neither flwr nor torch.
"""

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from agent.config import NAME_PATTERN
from agent.errors import BadInput, NotRunning
from agent.fl import certificates, station_key
from agent.fl.base import FLEET
from agent.fl.environment import quiet

SETTINGS: Final = "fleet.json"
FORMAT: Final = 1
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,252})")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `fleet.json` holds."""

    format: int
    name: str
    hosts: tuple[str, ...]  # host names and addresses by which stations reach the fleet


class Serving(msgspec.Struct, frozen=True):
    """What `serve.json` holds while the fleet is served."""

    pid: int
    control: str  # 127.0.0.1:PORT; whoever reaches it can run code on every station
    address: str  # where stations connect to


@dataclass(frozen=True)
class Member:
    """A station that may take part."""

    name: str
    key: str  # the public key's first two words
    fingerprint: str


class Fleet:
    """Everything in the folder. Raises BadInput where it is not one that `so-agent fleet init` made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.authority = self.folder / "ca.crt"
        self.authority_key = self.folder / "ca.key"
        self.certificate = self.folder / "server.crt"
        self.key = self.folder / "server.key"
        self.stations = self.folder / "stations"
        self.policies = self.folder / "policies"
        self.runs = self.folder / "runs"
        self.flower = self.folder / "flower"
        self.serving_file = self.folder / "serve.json"

    @classmethod
    def init(cls, folder: Path, name: str, hosts: tuple[str, ...]) -> "Fleet":
        """Make a fleet. On one that is there already, only the server's certificate is made anew.

        Raises BadInput for impossible names, or a folder that holds something else.
        """
        fleet = cls(folder)
        _check_name(name, "fleet")
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise BadInput(
                    f"{host!r} is no host name or address.", "Give what stations connect to, without a port."
                )
        known = (fleet.folder / SETTINGS).is_file()
        if not known and fleet.folder.is_dir() and any(fleet.folder.iterdir()):
            raise BadInput(f"{fleet.folder} holds something else.", "Name an empty folder, or one that is not there.")
        try:
            fleet.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in (fleet.stations, fleet.policies, fleet.runs, fleet.flower):
                part.mkdir(mode=0o700, exist_ok=True)
            if not known:
                certificates.make_authority(fleet.authority, fleet.authority_key, f"so-agent fleet {name}")
            certificates.make_server(fleet.certificate, fleet.key, hosts, (fleet.authority, fleet.authority_key))
            _write(fleet.folder / SETTINGS, Settings(FORMAT, name, hosts))
        except OSError as error:
            raise BadInput(
                f"Cannot write to {fleet.folder}: {error.strerror}.", "Name a folder of your own."
            ) from error
        return fleet

    @property
    def settings(self) -> Settings:
        path = self.folder / SETTINGS
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Settings)
        except FileNotFoundError as error:
            raise BadInput(
                f"{self.folder} is no fleet.",
                f"Name its folder with --fleet, or make one with `so-agent fleet init {self.folder}`.",
            ) from error
        except (OSError, msgspec.DecodeError) as error:
            raise BadInput(f"Cannot read {path}: {error}.", "Was it made by another version of the agent?") from error
        if found.format != FORMAT:
            raise BadInput(f"{path} is of format {found.format}; this agent knows {FORMAT}.", "Update the agent.")
        return found

    def add_station(self, name: str, line: str) -> Member:
        """Let a station take part. Raises BadInput for a bad key, or a name or key that another one has."""
        _check_name(name, "station")
        _ = self.settings
        key = station_key.check_public(line)
        for member in self.members():
            if member.key == key and member.name != name:
                raise BadInput(f"This key is {member.name}'s.", "Each station makes its own with `so-agent fl enroll`.")
        path = self.stations / f"{name}.pub"
        if path.exists() and station_key.read_public(path) != key:
            raise BadInput(
                f"There is a station {name} with another key.",
                f"If it has a new key: `so-agent fleet remove-station {name}` first.",
            )
        new = path.with_name(f".{name}.new")
        new.write_text(f"{key} {name}\n", encoding="utf-8")
        new.replace(path)
        return Member(name, key, station_key.fingerprint(key))

    def remove_station(self, name: str) -> None:
        """Raises BadInput when there is no such station."""
        path = self.stations / f"{name}.pub"
        if not re.fullmatch(NAME_PATTERN, name) or not path.is_file():
            known = ", ".join(member.name for member in self.members())
            raise BadInput(f"There is no station {name}.", f"There are {known}." if known else "There are none.")
        path.unlink()

    def members(self) -> list[Member]:
        """By name. Files that hold no key are left out, with no word: `problems` names them."""
        found = []
        for path in sorted(self.stations.glob("*.pub")):
            try:
                key = station_key.read_public(path)
            except BadInput:
                continue
            found.append(Member(path.stem, key, station_key.fingerprint(key)))
        return found

    def problems(self) -> list[str]:
        """Sentences about key files that cannot be read."""
        found = []
        for path in sorted(self.stations.glob("*.pub")):
            try:
                station_key.read_public(path)
            except BadInput as error:
                found.append(error.message)
        return found

    def serving(self) -> Serving:
        """Where the fleet is served. Raises NotRunning."""
        hint = f"Start it with `so-agent fleet serve --fleet {self.folder}`."
        try:
            found = msgspec.json.decode(self.serving_file.read_bytes(), type=Serving)
            os.kill(found.pid, 0)
            host, _, port = found.control.rpartition(":")
            socket.create_connection((host, int(port)), timeout=2.0).close()
        except FileNotFoundError as error:
            raise NotRunning(f"The fleet {self.folder} is not being served.", hint) from error
        except (OSError, msgspec.DecodeError, ValueError) as error:
            raise NotRunning(f"The fleet {self.folder} does not answer ({error}).", hint) from error
        return found

    def environment(self) -> dict[str, str]:
        """What every process of Flower gets here: nothing of the user's, no telemetry, no look at the network."""
        return {**quiet(self.flower), FLEET: str(self.folder)}


def _check_name(name: str, what: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        how = ": --name NAME." if what == "fleet" else "."
        raise BadInput(f"{name!r} cannot be a {what}'s name.", f"Use lower case letters, digits, - and _{how}")


def _write(path: Path, message: msgspec.Struct) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(message), indent=2) + b"\n")
    new.replace(path)
