"""What this agent relies on in flwr 1.42 beyond its documented interfaces. A new version has to pass this first."""

import dis
import inspect
import re
from importlib.metadata import version

import flwr.supernode.fleet_http_client
import flwr.supernode.fleet_http_connection
import flwr.supernode.runtime.run_clientapp as runner_of_flower
import flwr.supernode.start_client_internal
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.exit import ExitCode, exit_handler, signal_handler
from flwr.supercore.retry import http_retry
from flwr.supercore.superexec.executor import subprocess_executor

from agent.fl import diary
from agent.fl.fleet_gate import FORWARDED, MAX_BODY_BYTES
from agent.fl.runner import PROGRAM, TOUCHED
from agent.fl.supernode import PROGRAMS

NOT_FOR_STATIONS = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("flwr") == "1.42.0"


def test_the_runner_looks_up_in_its_module_what_is_replaced_there() -> None:
    called = {
        each.argval for each in dis.get_instructions(runner_of_flower.run_clientapp) if each.opname == "LOAD_GLOBAL"
    }
    assert set(TOUCHED) <= called
    assert list(inspect.signature(runner_of_flower.pull_task_input).parameters) == ["client"]
    source = inspect.getsource(runner_of_flower.run_clientapp)
    assert "message, context, run, fab = pull_task_input(client)" in source
    assert "install_from_fab(fab.content, skip_prompt=True)" in source
    assert "load_client_app_fn(\n            run.fab_id, run.fab_version, fab.hash_str\n        )" in source
    assert "reply_message = client_app(message=message, context=context)" in source
    # The handler of SIGTERM is set by the function that is replaced, so ours comes after it.
    assert "signal.signal(" in inspect.getsource(signal_handler.register_signal_handlers)


def test_every_program_that_a_supernode_may_start_is_ours() -> None:
    assert set(TASK_TYPE_TO_COMMAND.values()) <= {*PROGRAMS, "flwr-simulation"}
    assert PROGRAM in PROGRAMS
    # It is found through PATH, by its bare name.
    assert "TASK_TYPE_TO_COMMAND[spec.task_type]," in inspect.getsource(subprocess_executor)


def test_the_gate_lets_through_what_supernodes_ask() -> None:
    source = inspect.getsource(flwr.supernode.fleet_http_client)
    asked = set(re.findall(r'path="(/v1/fleet/[a-z-]+)"', source))
    assert asked - NOT_FOR_STATIONS == FORWARDED
    from flwr.common.constant import FAB_MAX_SIZE, FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

    assert max(FAB_MAX_SIZE, FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE) < MAX_BODY_BYTES


def test_a_supernode_says_what_the_diary_reads() -> None:
    loop = inspect.getsource(flwr.supernode.start_client_internal)
    connection = inspect.getsource(flwr.supernode.fleet_http_connection)
    for words in (
        '"SuperNode ID: %s"',
        '"[RUN %s, ROUND %s]"',
        f'"{diary.GOT}%s message',
        diary.HAVE,
        diary.LEFT,
        *diary.SENT,
        *diary.DROPPED,
    ):
        assert words in loop, words
    assert diary.FORGOTTEN in connection
    assert '"retrying in %.2f seconds"' in inspect.getsource(
        http_retry
    ) or "retrying in %.2f seconds" in inspect.getsource(http_retry)
    assert diary.AGAIN in inspect.getsource(http_retry)
    assert "[code: {flower_error.code}]" in connection


def test_numbers_that_are_read() -> None:
    assert ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED == diary.ACTIVATION_REFUSED
    assert ExitCode.SUPERNODE_CONNECTION_ERROR == 305
    assert callable(exit_handler.add_exit_handler)


def test_the_control_api_has_what_a_fleet_asks() -> None:
    for name in ("ListNodes", "ListRuns", "RegisterNode", "UnregisterNode", "StartRun", "StopRun"):
        assert callable(getattr(ControlHttpClient, name))
