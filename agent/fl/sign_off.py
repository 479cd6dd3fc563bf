"""Say goodbye to a fleet for a SuperNode that was killed: `python -m agent.fl.sign_off SUPERLINK CA KEY NODE`.

The fleet takes the session of a killed SuperNode for alive until two heartbeats are missing, and lets no other one with
the same key in for that minute. The station has the key, and may say so itself.
"""

import sys
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor


def sign_off(superlink: str, authority: Path, key: Path, node: int) -> None:
    """Raises httpx.HTTPError when the fleet is away, or has forgotten the session by itself."""
    private = load_ssh_private_key(key.read_bytes(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise TypeError("not a key of a station")
    client = FleetHttpClient.from_server_address(
        superlink,
        insecure=False,
        root_certificates=authority.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, private.public_key()),
        ],
    )
    with client:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node))


def main() -> int:
    superlink, authority, key, node = sys.argv[1:]
    try:
        sign_off(superlink, Path(authority), Path(key), int(node))
    except httpx.HTTPError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
