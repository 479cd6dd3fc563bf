"""The arm process: forked by the nursery, it owns the servo buses until it is told to leave.

Two threads matter: this one becomes the control loop, another one answers commands. They share a mailbox.
"""

import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future
from typing import Final

import zmq

from agent.clock import Clock, SystemClock
from agent.config import StationConfig
from agent.errors import NotRunning
from agent.messages import ArmCommand, ArmEstop, ArmHandover, ArmReply, ArmReport, ArmShutdown
from agent.robot import estop
from agent.robot.control import Control
from agent.robot.mailbox import Mailbox
from agent.robot.pacing import prefer
from agent.telemetry import logger
from agent.transport import CommandClient, CommandServer

SWITCH_INTERVAL_S: Final = 0.0005
"""How long another Python thread may keep the control thread waiting; the default is 5 ms."""

REPLY_POLL_S: Final = 0.005
IDLE_POLL_S: Final = 0.1

HANDOVER_S: Final = 2.0
"""A predecessor leaves within one tick; a bus time-out may come before that."""


def main(config: StationConfig) -> None:
    """Run the arm process until ArmShutdown, ArmHandover or SIGTERM."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    paths = config.paths
    paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    take_over(config)
    clock = SystemClock()
    mailbox = Mailbox(clock)
    control = Control(config, clock, mailbox)
    # systemd sends SIGTERM to every process of the unit; parking and releasing is what it means here.
    signal.signal(signal.SIGTERM, lambda *_: mailbox.post(ArmShutdown("SIGTERM")))
    leaving = threading.Event()
    server = threading.Thread(target=_serve, args=(config, clock, mailbox, leaving), name="commands", daemon=True)
    server.start()
    try:
        control.run()
    finally:
        leaving.set()
        server.join(1.0)
        zmq.Context.instance().term()  # the last reply has left when this returns
    logger.info("arm process leaves")


def take_over(config: StationConfig) -> None:
    """Ask an arm process that still runs on this station to hand the arm over, and wait until it is gone."""
    path = config.paths.arm_ctl
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return  # nobody there; after a SIGKILL the file stays, and refuses
    client: CommandClient[ArmReport] = CommandClient(path, ArmReply)
    try:
        report = client.ask(ArmHandover("a new arm process starts"), HANDOVER_S)
    except NotRunning as error:
        logger.warning("the arm process before this one does not answer", error=str(error))
        return
    deadline = time.monotonic() + HANDOVER_S
    while time.monotonic() < deadline and _alive(report.pid):
        time.sleep(REPLY_POLL_S)
    logger.info("took over from the arm process before", pid=report.pid)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _serve(config: StationConfig, clock: Clock, mailbox: Mailbox, leaving: threading.Event) -> None:
    """Answer commands. Never waits for one reply before looking at the next command: it may be an e-stop."""
    prefer(min(config.robot.realtime_priority, 1))  # an e-stop must get through a busy host
    server: CommandServer[ArmCommand] = CommandServer(config.paths.arm_ctl, ArmCommand)
    waiting: list[tuple[list[bytes], Future[ArmReply]]] = []
    while not leaving.is_set() or waiting:
        received = server.receive(REPLY_POLL_S if waiting else IDLE_POLL_S)
        if received is not None:
            envelope, command = received
            waiting.append((envelope, mailbox.post(command)))
            if isinstance(command, ArmEstop):
                _latch(config, clock, command)
        for item in [item for item in waiting if item[1].done() or leaving.is_set()]:
            waiting.remove(item)
            if item[1].done():
                server.reply(item[0], item[1].result())
    server.close()


def _latch(config: StationConfig, clock: Clock, command: ArmEstop) -> None:
    """Make the stop outlive this process. Here, because a slow disk must not keep the control thread waiting."""
    if estop.read(config.paths.estop_latch):
        return
    try:
        estop.write(config.paths.estop_latch, estop.Latch(command.cause, clock.wall_s()))
    except OSError as error:
        # The arm is stopped all the same, and stays so while this process lives.
        logger.error("the e-stop latch could not be written", path=str(config.paths.estop_latch), error=str(error))
