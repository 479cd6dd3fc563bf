"""Where everything of one station lies on its disk, and the sockets by which its processes find each other."""

from pathlib import Path

from agent.transport import endpoint


class Paths:
    """Where everything of a station lies. Folders are made by whoever writes into them first."""

    def __init__(
        self, *, state: Path, run: Path, dataset: str, calibration: Path, follower: str, leader: str | None
    ) -> None:
        """`follower` and `leader` are the ids of the arms; `calibration` is laid out like lerobot's own folder."""
        self.state = state
        self.run = run
        self.follower_calibration = calibration / "robots" / "so_follower" / f"{follower}.json"
        self.leader_calibration = calibration / "teleoperators" / "so_leader" / f"{leader}.json" if leader else None
        self.datasets = self.state / "datasets"
        self.dataset = self.datasets / dataset
        self.journal = self.state / "journal"
        self.estop_latch = self.state / "estop.json"
        self.lock = self.state / "agent.lock"
        self.agent_socket = self.run / "agent.sock"
        self.arm_pub = self.run / "arm.pub"
        self.arm_ctl = self.run / "arm.ctl"
        self.recorder_pub = self.run / "rec.pub"
        self.recorder_ctl = self.run / "rec.ctl"
        self.policies = self.state / "policies"  # one bundle a folder
        self.policy_cache = self.state / "policy-cache"  # converted weights, by bundle
        self.policy_in_use = self.state / "policy.json"
        self.policy_pub = self.run / "policy.pub"
        self.policy_ctl = self.run / "policy.ctl"
        self.federation = self.state / "federation"  # enrolment, keys, consent, what flwr keeps
        self.access = self.state / "access"  # hashes of tokens, never the tokens
        self.mqtt_seen = self.state / "mqtt-seen.jsonl"  # commands that must not be carried out twice
        self.virtual_ctl = self.run / "virtual.sock"

    def camera_pub(self, name: str) -> Path:
        return self.run / f"cam-{name}.pub"

    def check(self) -> None:
        """Raises BadInput when a socket path would be too long for the kernel."""
        endpoint(self.camera_pub("x" * 24))
