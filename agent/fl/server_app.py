"""What the server does in a run. `app` is what Flower loads.

It needs neither torch nor lerobot, but for a base policy whose action expert is what travels.
"""

import logging
import random
import time
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from agent.errors import AgentError, BadInput
from agent.fl.adapter import check_fits, open_adapter
from agent.fl.base import find_base, fleet_folder
from agent.fl.exchange import METRICS
from agent.fl.layout import Layout, Shape, layout
from agent.fl.run_folder import Common, RunFolder
from agent.fl.settings import Scaling, Settings, read_settings
from agent.fl.statistics import Numbers, for_policy, of_policy, pool
from agent.fl.strategy import LOOK_EVERY_S, Arrays, Rounds, wait_for_nodes
from agent.inference.bundle import Bundle

app = ServerApp()

LOG: Final = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A whole run, or what is left of it. Raises AgentError when it cannot begin or is given up."""
    settings = read_settings(context.run_config)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    base = find_base(settings.policy)
    plan = layout(base, Shape.of(settings))
    folder = RunFolder((Path(settings.output) if settings.output else fleet_folder()) / settings.name)
    common = folder.common()
    if common is None:
        common = _begin(grid, settings, base, plan, folder)
    folder.check_same(common, settings, base)
    last = folder.last()
    done = last.manifest.round
    check_fits(last, base)
    LOG.info("rounds are kept in %s%s", folder.folder, f"; going on after round {done}" if done else "")
    arrays = _record(last.arrays())
    rounds = Rounds(settings, common, plan, folder, done)
    if settings.fraction_evaluate > 0 or done >= settings.num_server_rounds:
        wait_for_nodes(grid, settings)
        messages = rounds.configure_evaluate(0, arrays, ConfigRecord(), grid)
        rounds.aggregate_evaluate(0, grid.send_and_receive(messages, timeout=settings.round_timeout_s))
    if done < settings.num_server_rounds:
        left = settings.num_server_rounds - done
        rounds.start(grid, arrays, num_rounds=left, timeout=settings.round_timeout_s)
    last = folder.last()
    _deliver(grid, settings, rounds, _record(last.arrays()))
    LOG.info("done; the last adapter is in %s", last.folder)


def _begin(grid: Grid, settings: Settings, base: Bundle, plan: Layout, folder: RunFolder) -> Common:
    """Round 0: what all stations start from, and by what they scale."""
    if settings.begin_with:
        adapter = open_adapter(Path(settings.begin_with))
        check_fits(adapter, base)
        if adapter.manifest.shape != plan.shape:
            raise BadInput(
                f"{adapter.folder} has another shape: {adapter.manifest.shape}.", "Give the settings that it has."
            )
        return folder.begin(settings, base, adapter.manifest.statistics, adapter.arrays())
    numbers = of_policy(base) if settings.statistics is Scaling.POLICY else _of_fleet(grid, settings, base)
    return folder.begin(settings, base, numbers, plan.begin(base, settings.seed))


def _of_fleet(grid: Grid, settings: Settings, base: Bundle) -> Numbers:
    """Of all stations that say. Raises BadInput when none does."""
    nodes = wait_for_nodes(grid, settings)
    ttl = settings.round_timeout_s
    messages = [Message(RecordDict(), node, f"{MessageType.QUERY}.statistics", ttl=ttl) for node in nodes]
    found = []
    for reply in grid.send_and_receive(messages, timeout=settings.round_timeout_s):
        if reply.has_error():
            LOG.info("node %d tells no statistics: %s", reply.metadata.src_node_id, reply.error.reason)
            continue
        try:
            record = dict(reply.content.metric_records[METRICS])
            pool([record])
        except (AgentError, KeyError) as error:
            LOG.warning("the statistics of node %d are not used: %s", reply.metadata.src_node_id, error)
            continue
        found.append(record)
    LOG.info("statistics of the joints are those of %d stations", len(found))
    return for_policy(base, pool(sorted(found, key=repr)))


def _deliver(grid: Grid, settings: Settings, rounds: Rounds, arrays: ArrayRecord) -> None:
    """The last adapter, to nodes that were away when it was offered."""
    until_s = time.monotonic() + settings.deliver_s
    while time.monotonic() < until_s:
        away = sorted(set(grid.get_node_ids()) - rounds.reached)
        if away:
            left_s = min(settings.round_timeout_s, until_s - time.monotonic())
            messages = rounds.offer(arrays, settings.num_server_rounds, away)
            rounds.aggregate_evaluate(0, grid.send_and_receive(messages, timeout=max(1.0, left_s)))
        time.sleep(LOOK_EVERY_S)


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})
