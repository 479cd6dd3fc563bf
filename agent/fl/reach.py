"""Whether the fleet can be reached, before anything is started for it: a TLS handshake against its own authority."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Final

TIMEOUT_S: Final = 5.0


async def problem(superlink: str, authority: Path) -> str:
    """Why there is no way to the fleet, as a sentence; empty when there is one."""
    host, _, port = superlink.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=str(authority))
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return (
            f"{superlink} is not the fleet that this station was enrolled with: {error.verify_message}; "
            "give its ca.crt to `so-agent fl enroll`"
        )
    except ssl.SSLError as error:
        return f"{superlink} does not speak TLS as a fleet does: {error.reason or error}"
    except socket.gaierror as error:
        return f"the name {host} is not known: {error.strerror}"
    except TimeoutError:
        return f"{superlink} does not answer within {TIMEOUT_S:g} s"
    except OSError as error:
        return f"{superlink} cannot be reached: {error.strerror or error}"
    writer.close()
    return ""
