"""What this agent relies on in flwr 1.42 beyond its documented interfaces. A new version has to pass this first."""

import dis
import inspect
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import flwr.supernode.fleet_http_client
import flwr.supernode.fleet_http_connection
import flwr.supernode.runtime.run_clientapp as runner_of_flower
import flwr.supernode.start_client_internal
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import (
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION,
    FLWR_HOME,
    HEARTBEAT_DEFAULT_INTERVAL,
    HEARTBEAT_PATIENCE,
)
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.server.superlink.linkstate.utils import check_node_availability_for_in_message
from flwr.supercore import telemetry
from flwr.supercore.constant import FLWR_DISABLE_UPDATE_CHECK, TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.exit import ExitCode, exit_handler, signal_handler
from flwr.supercore.fab import Fab
from flwr.supercore.retry import http_retry
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supercore.utils import get_flwr_home
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from agent.fl import diary, environment, leaving, node, strategy
from agent.fl.fleet_gate import FORWARDED, MAX_BODY_BYTES
from agent.fl.runner import ADDRESS, PROGRAM, TOUCHED
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
    monitor = inspect.signature(runner_of_flower.start_parent_process_monitor)
    assert list(monitor.parameters) == ["parent_pid"]
    assert "start_parent_process_monitor(parent_pid)" in inspect.getsource(runner_of_flower.run_clientapp)
    # What ours does instead of asking with a signal: the same end, when the parent is gone.
    assert "signal.raise_signal(signal.SIGINT)" in inspect.getsource(runner_of_flower.start_parent_process_monitor)
    source = inspect.getsource(runner_of_flower.run_clientapp)
    assert "message, context, run, fab = pull_task_input(client)" in source
    assert "install_from_fab(fab.content, skip_prompt=True)" in source
    assert "load_client_app_fn(\n            run.fab_id, run.fab_version, fab.hash_str\n        )" in source
    assert "reply_message = client_app(message=message, context=context)" in source
    # What ours makes of an error's text: the last thing that happens to a reply.
    assert list(inspect.signature(runner_of_flower.push_message).parameters) == ["client", "message", "context"]
    assert "push_message(client, reply_message, context)" in source
    # The handler of SIGTERM is set by the function that is replaced, so ours comes after it.
    assert "signal.signal(" in inspect.getsource(signal_handler.register_signal_handlers)


def test_every_program_that_a_supernode_may_start_is_ours() -> None:
    assert set(TASK_TYPE_TO_COMMAND.values()) <= {*PROGRAMS, "flwr-simulation"}
    assert PROGRAM in PROGRAMS
    assert {PROGRAM: ADDRESS}.items() <= {
        TASK_TYPE_TO_COMMAND[kind]: word for kind, word in TASK_TYPE_TO_APPIO_API_ADDRESS_ARG.items()
    }.items()
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


def test_a_reply_is_lost_when_its_node_leaves_before_it_is_fetched() -> None:
    """Why a SuperNode waits before it says goodbye. If this fails, Flower has mended it: leaving.FETCHED_S can go."""
    source = inspect.getsource(InMemoryLinkState.get_message_res)
    online, replies = source.index("check_node_availability_for_in_message"), source.index("message_res_found:")
    assert online < replies
    assert "inquired_in_message_ids.remove(in_message_id)" in inspect.getsource(check_node_availability_for_in_message)


def test_how_long_things_may_stand_still() -> None:
    """A SuperNode is alive for the fleet for two intervals; a run looks for replies every three seconds."""
    assert HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL < node.SESSION_S
    assert node.FREEZE_S + leaving.FETCHED_S < HEARTBEAT_DEFAULT_INTERVAL
    assert "time.sleep(3)" in inspect.getsource(HttpGrid.send_and_receive)
    assert leaving.FETCHED_S > 2 * 3
    assert node.FREEZE_S + leaving.FETCHED_S + 3 < strategy.LEAVING_S


def test_the_programs_take_what_they_are_given() -> None:
    superlink = _parse_args_run_superlink().parse_args(
        shlex.split(
            "--host 127.0.0.1 --port 1 --ssl-ca-certfile a --ssl-certfile b --ssl-keyfile c --enable-supernode-auth "
            "--disable-runtime-dependency-installation"
        )
    )
    assert superlink.enable_supernode_auth
    supernode = _parse_args_run_supernode().parse_args(
        shlex.split("--superlink a:1 --root-certificates a --auth-supernode-private-key b --host 127.0.0.1 --port 2")
    )
    assert supernode.superlink == "a:1"


def test_the_environment_says_what_it_should() -> None:
    told = environment.quiet(Path("/nowhere"))
    assert telemetry.FLWR_TELEMETRY_ENABLED in ("0", "1")  # read once, from a variable of its own name
    for name in (FLWR_DISABLE_UPDATE_CHECK, FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION):
        assert told[name] == "1"
    assert told["FLWR_TELEMETRY_ENABLED"] == "0"
    assert told[FLWR_HOME] == "/nowhere"
    assert 'getenv("FLWR_TELEMETRY_ENABLED"' in inspect.getsource(telemetry)
    assert "os.getenv(FLWR_HOME)" in inspect.getsource(get_flwr_home)  # at each call: a trainer has another one


def test_a_killed_session_can_be_signed_off() -> None:
    assert list(inspect.signature(NodeAuthHttpInterceptor).parameters) == ["private_key", "public_key"]
    assert {"server_address", "insecure", "root_certificates", "interceptors"} <= set(
        inspect.signature(FleetHttpClient.from_server_address).parameters
    )
    assert callable(FleetHttpClient.DeactivateNode)


def test_an_app_is_packed_and_submitted_as_flower_does() -> None:
    assert next(iter(inspect.signature(build_fab_from_disk).parameters)) is not None
    fab = Fab("00", b"content", {})
    assert fab_to_proto(fab).content == b"content"
    assert user_config_to_proto({"a": 1})["a"].sint64 == 1
    assert FlowerError.from_json("not JSON") is None


def test_the_control_api_has_what_a_fleet_asks() -> None:
    for name in ("ListNodes", "ListRuns", "RegisterNode", "UnregisterNode", "StartRun", "StopRun"):
        assert callable(getattr(ControlHttpClient, name))
