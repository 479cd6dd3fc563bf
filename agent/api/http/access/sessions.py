"""What the page keeps instead of the token: a cookie that scripts cannot read, signed by this station.

Nothing is stored here, so a restarted process knows its visitors. A session ends with the token it was begun with.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Final

from agent.api.http.access.tokens import Token, TokenStore, write_secret
from agent.clock import Clock

LIFETIME_S: Final = 30 * 24 * 3600
"""A phone that lies beside the arm is not asked every day; revoking its token ends it at once."""

KEY_BYTES: Final = 32


class Sessions:
    """Signs cookies and reads them back."""

    def __init__(self, folder: Path, tokens: TokenStore, clock: Clock) -> None:
        self._path = folder / "session.key"
        self._tokens = tokens
        self._clock = clock
        self._key: bytes | None = None

    def begin(self, token: Token) -> str:
        """The value of the cookie."""
        body = f"{token.id}.{int(self._clock.wall_s()) + LIFETIME_S}".encode()
        return base64.urlsafe_b64encode(body + b"." + self._sign(body)).decode()

    def visitor(self, cookie: str) -> Token | None:
        """Whose session it is; None when it was not begun here, is over, or its token was revoked."""
        try:
            body, _, signature = base64.urlsafe_b64decode(cookie.encode()).rpartition(b".")
            number, until = body.decode().split(".")
            expires_s = int(until)
        except (ValueError, binascii.Error):
            return None
        if not hmac.compare_digest(signature, self._sign(body)) or self._clock.wall_s() > expires_s:
            return None
        return self._tokens.find(number)

    def _sign(self, body: bytes) -> bytes:
        if self._key is None:
            self._key = self._read_key()
        return hmac.new(self._key, body, hashlib.sha256).hexdigest().encode()

    def _read_key(self) -> bytes:
        if self._path.is_file():
            key = self._path.read_bytes()
            if len(key) == KEY_BYTES:
                return key
        key = secrets.token_bytes(KEY_BYTES)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_secret(self._path, key)
        return key
