"""Access tokens. Shown once, when they are made; what is kept is a hash, and a revoked token ends at once.

A token is 256 random bits, so that one SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import BadInput

PREFIX: Final = "so"
"""Tells secret scanners and people what a leaked string is."""

ID_BYTES: Final = 4
SECRET_BYTES: Final = 32
NAME_MAX_CHARS: Final = 40
MAX_TOKENS: Final = 100


class Role(StrEnum):
    READ = "read"  # see everything, and stop the arm
    CONTROL = "control"  # also take control


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of one token."""

    id: str
    name: str
    role: Role
    sha256: str
    created_at: str  # ISO 8601, UTC


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: tuple[Token, ...] = ()


class TokenStore:
    """The tokens of one station, in one small file that only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "tokens.json"
        self._seen: tuple[int, int, int] | None = None
        self._tokens: dict[str, Token] = {}

    def create(self, name: str, role: Role) -> tuple[Token, str]:
        """A new token and its secret form, which is not kept anywhere. Raises BadInput."""
        name = name.strip()
        if not 1 <= len(name) <= NAME_MAX_CHARS or not name.isprintable():
            raise BadInput(
                f"The name of a token has 1 to {NAME_MAX_CHARS} printable characters; found {name!r}.",
                "Name it after who will use it, e.g. phone.",
            )
        with self._changing() as tokens:
            if any(token.name == name for token in tokens):
                raise BadInput(f"There is a token named {name} already.", "Choose another name, or revoke that one.")
            if len(tokens) >= MAX_TOKENS:
                raise BadInput(f"There are {MAX_TOKENS} tokens already.", "Revoke those that are not used any more.")
            number, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            token = Token(number, name, role, _digest(secret), created)
            tokens.append(token)
        return token, f"{PREFIX}_{number}_{secret}"

    def revoke(self, name_or_id: str) -> Token:
        """Forget a token; whoever uses it is out with their next request. Raises BadInput."""
        with self._changing() as tokens:
            found = [token for token in tokens if name_or_id in (token.id, token.name)]
            if not found:
                raise BadInput(f"There is no token {name_or_id!r}.", "See `so-agent token list`.")
            token = found[0]
            tokens.remove(token)
        return token

    def all(self) -> tuple[Token, ...]:
        self._refresh()
        return tuple(self._tokens.values())

    def find(self, number: str) -> Token | None:
        """The token of this id, if it was not revoked."""
        self._refresh()
        return self._tokens.get(number)

    def check(self, text: str) -> Token | None:
        """The token that `text` is the secret form of; None when it is not one of this station."""
        parts = text.split("_", 2)
        if len(parts) != 3 or parts[0] != PREFIX:
            return None
        token = self.find(parts[1])
        if token is None or not hmac.compare_digest(token.sha256, _digest(parts[2])):
            return None
        return token

    def _refresh(self) -> None:
        """Read the file again when it has changed: `so-agent token revoke` is another process."""
        try:
            about = self._path.stat()
        except FileNotFoundError:
            self._seen, self._tokens = None, {}
            return
        except PermissionError as error:
            raise self._not_ours(error) from error
        seen = (about.st_mtime_ns, about.st_ino, about.st_size)
        if seen != self._seen:
            self._tokens = {token.id: token for token in self._read()}
            self._seen = seen

    def _read(self) -> tuple[Token, ...]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File).tokens
        except FileNotFoundError:
            return ()
        except PermissionError as error:
            raise self._not_ours(error) from error
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadInput(
                f"Cannot read {self._path}: {error}.",
                "Move it away, then make new tokens with `so-agent token create`.",
            ) from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        """The tokens, to be changed by one process at a time, and written when that went well."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            give_to_owner_of(self._folder.parent, self._folder)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except PermissionError as error:
            raise self._not_ours(error) from error
        with os.fdopen(lock) as held:
            give_to_owner_of(self._folder, lock)
            fcntl.flock(held, fcntl.LOCK_EX)
            tokens = list(self._read())
            yield tokens
            write_secret(self._path, msgspec.json.encode(_File(tuple(tokens))))

    def _not_ours(self, error: OSError) -> BadInput:
        return BadInput(
            f"This account may not look into {self._folder}: {error.strerror}.",
            "Run it as root, or as the account that the station runs under.",
        )


def give_to_owner_of(folder: Path, made: Path | int) -> None:
    """What root makes for a service has to be readable for the account of that service."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(made, owner.st_uid, owner.st_gid)


def write_secret(path: Path, content: bytes) -> None:
    """Durable when it returns; readable by its owner alone, also while it is being written."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        give_to_owner_of(path.parent, file.fileno())
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
