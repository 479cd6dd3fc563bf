"""The link that opens the page with a token, as text and as a picture that a phone can read."""

from typing import Final

from agent.config import LOOPBACK, Http

EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
QUIET_MODULES: Final = 2
"""Light modules around a code; readers want some, terminals are narrow."""

UPPER: Final = "▀"
COLOURS: Final = {(True, True): "97;107", (True, False): "97;40", (False, True): "30;107", (False, False): "30;40"}
"""Foreground is the upper module of a character cell, background the lower one; dark on light in any theme."""


def link(settings: Http | None, token: str) -> str | None:
    """Behind `#`, where no server and no log sees it. None when nothing says under which name the page is opened."""
    if settings is None:
        return None
    names = [*settings.names, *([] if settings.host in EVERY_ADDRESS else [settings.host])]
    if not names:
        return None
    name = f"[{names[0]}]" if ":" in names[0] else names[0]
    return f"{'https' if settings.tls else 'http'}://{name}:{settings.port}/#token={token}"


def reach(settings: Http | None) -> str | None:
    """What keeps other machines from using the link, a sentence; None when nothing does."""
    if settings is None:
        return "This station serves no page yet: add `http` to its configuration, see docs/page.md."
    if settings.host in EVERY_ADDRESS and not settings.names:
        return "Nobody can open the page under a name yet: add one to http.names, see docs/page.md."
    if settings.host in LOOPBACK:
        return "Only this machine reaches the page: other machines need http.host, names and tls, see docs/page.md."
    return None


def qr_lines(text: str) -> list[str]:
    """A QR code for a terminal, two modules a character."""
    import cv2  # 0.2 s that no other command needs
    import numpy as np

    code = cv2.QRCodeEncoder.create().encode(text) > 0  # True: light; comes with a border of its own
    code = np.pad(code, QUIET_MODULES - 1, constant_values=True)
    if len(code) % 2:
        code = np.pad(code, ((0, 1), (0, 0)), constant_values=True)
    return [
        "".join(f"\x1b[{COLOURS[bool(up), bool(low)]}m{UPPER}" for up, low in zip(upper, lower, strict=True))
        + "\x1b[0m"
        for upper, lower in zip(code[::2], code[1::2], strict=True)
    ]
