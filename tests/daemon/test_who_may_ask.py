"""Who may open the agent's socket: in a terminal its owner, as a service the group for whom the folder was made."""

from pathlib import Path

import pytest

from agent.daemon import socket_mode


@pytest.mark.parametrize(
    ("folder_mode", "made_by_a_service_manager", "mode"),
    [
        (0o750, True, 0o660),
        (0o700, True, 0o600),
        (0o755, True, 0o600),  # open to everybody, which nobody can have meant
        (0o750, False, 0o600),  # somebody's own station
    ],
)
def test_the_group_may_ask_only_a_service_whose_folder_is_the_groups(
    tmp_path: Path, folder_mode: int, made_by_a_service_manager: bool, mode: int
) -> None:
    folder = tmp_path / "kitchen"
    folder.mkdir()
    folder.chmod(folder_mode)
    environment = {"RUNTIME_DIRECTORY": f"/run/other:{folder}"} if made_by_a_service_manager else {}
    assert socket_mode(folder, environment) == mode
