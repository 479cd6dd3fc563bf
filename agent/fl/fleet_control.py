"""What a fleet's own machine asks of its SuperLink: Flower's control API, through Flower's client.

Imported late, by commands that need it: flwr takes a second.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from agent.errors import AgentError, BadInput, NotRunning
from agent.fl import station_key
from agent.fl.fleet import Fleet

GONE: Final = "unregistered"

type Value = bool | int | float | str


@dataclass(frozen=True)
class Node:
    """A station as the SuperLink sees it."""

    id: int
    name: str
    key: bytes  # PEM
    status: str  # registered, online, offline
    since: str | None  # ISO time


@dataclass(frozen=True)
class Run:
    """A run as the SuperLink sees it."""

    id: int
    app: str  # SHA-256
    status: str  # pending, starting, running, finished:completed, finished:failed, finished:stopped
    details: str
    began: str
    ended: str


class Control:
    """One connection; to be closed. Raises NotRunning when the SuperLink does not answer, BadInput when it refuses."""

    def __init__(self, fleet: Fleet, address: str | None = None) -> None:
        """`address` None: where the fleet is being served."""
        self._client = ControlHttpClient.from_server_address(
            server_address=address or fleet.serving().control,
            insecure=False,
            root_certificates=fleet.authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def close(self) -> None:
        self._client.close()

    def nodes(self) -> list[Node]:
        with _sentences():
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(
                each.node_id,
                each.name,
                bytes(each.public_key),
                each.status,
                (each.last_deactivated_at if each.status == "offline" else each.last_activated_at) or None,
            )
            for each in found
            if each.status != GONE
        ]

    def register(self, name: str, key: str) -> None:
        """Let the owner of a public key in (OpenSSH's format)."""
        with _sentences():
            self._client.RegisterNode(RegisterNodeRequest(public_key=station_key.public_bytes(key), name=name))

    def unregister(self, node: Node) -> None:
        """The station is refused from its next request on."""
        with _sentences():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.id))

    def start(self, app: bytes, overrides: Mapping[str, Value]) -> int:
        """Submit an app. The number of the run."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(app).hexdigest(), app, {})),
            override_config=user_config_to_proto(dict(overrides)),
        )
        with _sentences():
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise BadInput("The SuperLink did not start the run.", "See superlink.log in the fleet's folder.")
        return answer.run_id

    def stop(self, run: int) -> None:
        with _sentences():
            self._client.StopRun(StopRunRequest(run_id=run))

    def runs(self) -> list[Run]:
        """The newest first."""
        with _sentences():
            found = self._client.ListRuns(ListRunsRequest()).run_dict
        runs = [
            Run(
                each.run_id,
                each.fab_hash,
                each.status.status + (f":{each.status.sub_status}" if each.status.sub_status else ""),
                each.status.details,
                each.pending_at,
                each.finished_at,
            )
            for each in found.values()
        ]
        return sorted(runs, key=lambda run: run.began, reverse=True)


@contextmanager
def _sentences() -> Iterator[None]:
    """What Flower answers, as errors of the family."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        told = FlowerError.from_json(error.response.text)
        raise BadInput(
            f"The SuperLink refuses: {told.public_details or told.message if told else error.response.text[:200]}",
            "See superlink.log in the fleet's folder.",
        ) from error
    except httpx.HTTPError as error:
        raise NotRunning(
            f"The SuperLink does not answer: {error!r}.", "`so-agent fleet serve` restarts it; try again."
        ) from error
    except ValueError as error:
        raise AgentError(f"The SuperLink's answer cannot be read: {error}.", "Is it another version?") from error
