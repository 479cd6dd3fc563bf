"""What a person types, what the agent is asked, and what comes back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.errors import DeviceFault, EstopLatched, Exit, Refused
from tests.cli.conftest import Cli

ROOT = Path(__file__).parents[2]
MODE = {"mode": "aligning", "reason": "teleop was started"}
SUMMARY: dict[str, Any] = {
    "task": "reach the disc",
    "problem": "",
    "results": [
        {"episode": 4, "frames": 240, "outcome": "committed", "reason": "", "repeats": {"front": 1},
         "stop_to_readable_s": 0.21},
        {"episode": None, "frames": 12, "outcome": "rejected", "reason": "camera wrist repeated 40%", "repeats": {},
         "stop_to_readable_s": None},
    ],
}  # fmt: skip
PROGRESS = {
    "task": "reach the disc", "source": "teleop", "phase": "episode", "episode": 1, "episodes": 2, "frames": 30,
    "seconds": 1.0, "repeats": {"front": 1}, "committed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (["teleop", "start"], "teleop.start"),
        (["teleop", "stop"], "teleop.stop"),
        (["hold"], "hold"),
        (["park"], "park"),
        (["reset"], "reset"),
    ],
)
def test_a_command_reaches_the_agent_and_says_which_mode_it_led_to(
    cli: Cli, agent: Any, words: list[str], verb: str
) -> None:
    it = agent({verb: MODE})
    result = cli(*words, "--socket", it.socket)
    assert (result.code, result.out, result.err) == (Exit.DONE, "aligning: teleop was started\n", "")
    assert it.asked == [(verb, {})]


def test_options_work_before_and_behind_the_command_and_the_one_behind_wins(cli: Cli, agent: Any) -> None:
    it = agent({"hold": MODE})
    assert cli("--socket", it.socket, "--json", "hold").json == {"ok": True, **MODE}
    assert cli("--socket", "/nowhere", "hold", "--socket", it.socket).code == Exit.DONE


def test_the_only_running_agent_is_found_without_being_named(cli: Cli, short_dir: Path) -> None:
    from tests.cli.wire import Agent

    states = short_dir / "home" / ".local" / "state" / "so-agent"
    with Agent(states / "a" / "run" / "agent.sock", {"hold": MODE}):
        (states / "b" / "run").mkdir(parents=True)
        assert cli("hold").code == Exit.DONE
        with Agent(states / "b" / "run" / "agent.sock", {}):
            several = cli("hold")
    assert several.code == Exit.BAD_INPUT
    assert "More than one agent runs" in several.err
    nobody = cli("hold")
    assert nobody.code == Exit.NOT_RUNNING
    assert "--socket" in nobody.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            Refused(
                "Not possible in mode idle: parked.", "Start with `so-agent teleop start` or `so-agent task start`."
            ),
            Exit.REFUSED,
        ),
        (EstopLatched("The emergency stop is latched.", "Run `so-agent reset`."), Exit.REFUSED),
        (DeviceFault("No servo answers.", "Is the arm's power supply on?"), Exit.DEVICE_FAULT),
    ],
)
def test_what_the_agent_refuses_is_shown_as_two_sentences_and_an_exit_code(
    cli: Cli, agent: Any, error: Refused, code: Exit
) -> None:
    it = agent({"hold": error})
    result = cli("hold", "--socket", it.socket)
    assert result.code == code
    assert result.out == ""
    assert result.err == f"{error.message}\n{error.hint}\n"
    as_json = cli("hold", "--socket", it.socket, "--json")
    assert as_json.code == code
    assert as_json.json == {"ok": False, "code": error.code, "message": error.message, "hint": error.hint}


def test_recording_is_started_with_what_was_asked_for(cli: Cli, agent: Any) -> None:
    it = agent({"record.start": {"recording": PROGRESS}})
    words = ["--task", " reach the disc ", "--episodes", 2, "--episode-s", 8, "--reset-s", 1]
    result = cli("record", "start", *words, "--socket", it.socket)
    assert result.code == Exit.DONE
    plan = {"task": "reach the disc", "episodes": 2, "episode_s": 8.0, "reset_s": 1.0}
    assert it.asked == [("record.start", plan)]
    assert "record stop" in result.out


@pytest.mark.parametrize("waits", ["--wait", "--no-wait"])
def test_recording_may_be_asked_for_while_the_follower_is_still_on_its_way(cli: Cli, agent: Any, waits: str) -> None:
    left = ["aligning", "aligning", "aligning", "teleop"]

    def start(_: dict[str, Any]) -> dict[str, Any]:
        if left[0] == "aligning":
            raise Refused("Recording needs a moving arm; the station is in mode aligning.", "Wait.")
        return SUMMARY | {"recording": PROGRESS}

    def status(_: dict[str, Any]) -> dict[str, Any]:
        return {"mode": left.pop(0) if len(left) > 1 else left[0]}

    it = agent({"record.start": start, "status": status})
    result = cli("record", "start", "--task", "reach the disc", waits, "--socket", it.socket)
    assert result.code == Exit.DONE
    assert result.err.count("Waiting until the follower has reached the leader.") == 1
    assert [verb for verb, _ in it.asked].count("record.start") == 2


def test_recording_is_refused_at_once_in_another_mode(cli: Cli, agent: Any) -> None:
    refusal = Refused("Recording needs a moving arm; the station is in mode idle.", "Run `so-agent teleop start`.")
    it = agent({"record.start": refusal, "status": {"mode": "idle"}})
    assert cli("record", "start", "--task", "reach the disc", "--socket", it.socket).code == Exit.REFUSED
    assert [verb for verb, _ in it.asked].count("record.start") == 1


def test_waiting_for_a_recording_ends_with_a_table_of_episodes(cli: Cli, agent: Any) -> None:
    it = agent({"record.start": SUMMARY})
    it.progress = [PROGRESS, PROGRESS | {"phase": "reset"}]
    result = cli("record", "start", "--task", "reach the disc", "--wait", "--socket", it.socket)
    assert result.code == Exit.DONE
    assert it.asked[0][1]["wait"] is True
    for words in ("committed", "240", "0.21 s", "camera wrist repeated 40%"):
        assert words in result.out


def test_a_session_that_ended_early_is_a_device_fault_with_its_results(cli: Cli, agent: Any) -> None:
    it = agent({"record.stop": SUMMARY | {"problem": "The recorder does not answer."}})
    result = cli("record", "stop", "--socket", it.socket)
    assert result.code == Exit.DEVICE_FAULT
    assert "240" in result.out
    assert "The recorder does not answer." in result.err
    as_json = cli("record", "stop", "--socket", it.socket, "--json")
    assert as_json.code == Exit.DEVICE_FAULT
    assert (as_json.json["ok"], as_json.json["code"], len(as_json.json["results"])) == (False, "device-fault", 2)


@pytest.mark.parametrize(
    ("words", "verb", "args"),
    [
        (["record", "stop", "--success"], "record.stop", {"success": True}),
        (["record", "stop", "--failure"], "record.stop", {"success": False}),
        (["record", "stop"], "record.stop", {"success": None}),
        (["record", "discard"], "record.discard", {}),
        (["record", "rerecord"], "record.rerecord", {}),
        (["episodes", "mark", "3", "--failure"], "episodes.mark", {"episode": 3, "success": False}),
        (["episodes", "show", "3"], "episodes.show", {"episode": 3}),
    ],
)
def test_episodes_are_ended_and_judged_as_asked(
    cli: Cli, agent: Any, words: list[str], verb: str, args: dict[str, Any]
) -> None:
    answers = {"record.rerecord": {"recording": PROGRESS}} | dict.fromkeys(("record.stop", "record.discard"), SUMMARY)
    episode = {"episode": {"episode": 3, "task": "reach", "repeats": {"front": 0}}}
    it = agent(answers | dict.fromkeys(("episodes.mark", "episodes.show"), episode))
    assert cli(*words, "--socket", it.socket).code == Exit.DONE
    assert it.asked == [(verb, args)]


def test_episodes_are_listed_for_people_and_for_programs(cli: Cli, agent: Any) -> None:
    row = {"episode": 0, "task": "reach the disc", "frames": 240, "seconds": 8.0, "source": "teleop", "success": True,
           "salvaged": False, "deleted": False}  # fmt: skip
    it = agent({"episodes.list": {"episodes": [row, row | {"episode": 1, "success": None, "salvaged": True}]}})
    assert cli("episodes", "list", "--socket", it.socket, "--json").json[0] == row
    shown = cli("episodes", "list", "--socket", it.socket).out
    assert "salvaged" in shown
    assert "240" in shown
    it.answers["episodes.list"] = {"episodes": []}
    assert cli("episodes", "list", "--socket", it.socket).out == "No episodes yet.\n"


def test_releasing_needs_a_confirmation_because_the_arm_drops(cli: Cli, agent: Any) -> None:
    it = agent({"release": {"mode": "idle", "reason": "released", "torque_on": False}})
    refused = cli("release", "--socket", it.socket)
    assert refused.code == Exit.BAD_INPUT
    assert "drop" in refused.err
    assert it.asked == []
    assert cli("release", "--yes", "--socket", it.socket).code == Exit.DONE
    it.answers["release"] = {"mode": "idle", "reason": "released", "torque_on": True}
    assert cli("release", "--yes", "--socket", it.socket).code == Exit.DEVICE_FAULT


def test_every_command_has_help_with_an_example(cli: Cli) -> None:
    import click
    import typer.main

    from agent.cli import application

    def commands(command: click.Command, path: list[str]) -> list[list[str]]:
        if isinstance(command, click.Group):
            return [leaf for name, inner in command.commands.items() for leaf in commands(inner, [*path, name])]
        return [path]

    leaves = commands(typer.main.get_command(application()), [])
    assert len(leaves) >= 22
    for path in leaves:
        help_text = cli(*path, "--help")
        assert help_text.code == Exit.DONE
        assert f"so-agent {' '.join(path)}" in help_text.out.split("Example")[1].replace("\n", " "), path


def test_every_module_has_the_commands_that_it_is_listed_with() -> None:
    """What the first word of a command line imports; a command that is listed nowhere would not be found."""
    import typer.main

    from agent.cli import MODULES, application, needed

    for module, commands in MODULES.items():
        registered = typer.main.get_command(application([module])).commands  # type: ignore[attr-defined]
        assert sorted(registered) == sorted(commands), module
        assert all(list(needed([command, "--json"])) == [module] for command in commands)
    for others in ([], ["--help"], ["-c", "run", "status"], ["statsu"]):
        assert list(needed(others)) == list(MODULES)


def test_version_is_printed(cli: Cli) -> None:
    assert set(cli("version", "--json").json) == {"ok", "version"}


def test_a_bug_is_one_sentence_and_no_traceback(cli: Cli, agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = agent({"status": {"mode": 1}})  # a status that no agent sends
    result = cli("status", "--socket", it.socket)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "SO_AGENT_DEBUG" in result.err
    monkeypatch.setenv("SO_AGENT_DEBUG", "1")
    with pytest.raises(KeyError):
        cli("status", "--socket", it.socket)


def test_words_that_are_no_command_are_bad_input_also_for_programs(cli: Cli) -> None:
    result = cli("telop", "start")
    assert result.code == Exit.BAD_INPUT
    assert "telop" in result.err
    assert cli("teleop", "strat").err.count("Did you mean 'start'?") == 1
    as_json = cli("record", "start", "--json")
    assert as_json.code == Exit.BAD_INPUT
    assert json.loads(as_json.out)["code"] == "bad-input"


def test_what_lies_on_the_virtual_table_is_said_to_the_station() -> None:
    asked = ["virtual-station", "-c", "configs/so101/virtual.yaml", "--disc", "red", "--disc", "pink", "--cube", "blue"]
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", *asked], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == Exit.BAD_INPUT
    assert "--disc: invalid choice: 'pink'" in done.stderr
