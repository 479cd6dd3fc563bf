"""Which apps may run on a station: its own, which carries no code, and those whose hash its owner has allowed.

Needs neither flwr nor torch.
"""

import hashlib

from agent.errors import Refused
from agent.fl.app import is_ours


def check(app: bytes, allowed: frozenset[str]) -> None:
    """Raises Refused with the reason, naming the app's hash."""
    digest = hashlib.sha256(app).hexdigest()
    if digest in allowed or is_ours(app):
        return
    raise Refused(
        f"The app {digest[:12]} is not on this station's list.",
        f"If you trust whoever sent it, add {digest} to federation.apps in the configuration.",
    )
