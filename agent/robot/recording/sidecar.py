"""What a LeRobotDataset has no place for: real times, repeated frames, who moved the arm, how the episode ended.

Columns in lerobot's own files would be nearer, but it reads those with the schema of the first: a dataset that
`lerobot-record --resume` went on with could no longer be opened.
"""

from collections import Counter
from datetime import datetime
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from agent.messages import EpisodeSource
from agent.robot.recording.journal import Episode


def summary(episode: Episode, index: int) -> dict[str, Any]:
    """What people and programs want to know of an episode, as JSON."""
    header, rows = episode.header, episode.rows
    span_s = (rows[-1].due_ns - rows[0].due_ns) / 1e9
    cameras = {}
    for number, view in enumerate(header.views):
        ages = _ages_ms(episode, number)
        cameras[view.camera] = {
            "view": view.name,
            "repeats": sum(row.seen[number].repeat for row in rows),
            "repeats_in_a_row": _longest_run([row.seen[number].repeat for row in rows]),
            "age_ms_mean": round(float(np.mean(ages)), 3),
            "age_ms_max": round(max(ages), 3),
        }
    return {
        "episode": index,
        "task": header.task,
        "frames": len(rows),
        "seconds": round(len(rows) / header.fps, 3),
        "source": str(_source(episode)),
        "success": episode.finished.success,
        "salvaged": episode.finished.salvaged,
        "ended": episode.finished.reason,
        "started_at": header.started_at,
        "committed_at": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        "rate_hz": round((len(rows) - 1 + sum(row.missing for row in rows)) / span_s, 4) if span_s else None,
        "cameras": cameras,
        "gaps": [{"row": number, "missing": row.missing} for number, row in enumerate(rows) if row.missing],
        "limited_rows": sum(bool(row.limits) for row in rows),
        "limits": dict(Counter(f"{limit.joint} {limit.kind}" for row in rows for limit in row.limits)),
        "journal": header.id,
        "station": header.station,
        "agent_version": header.agent_version,
        "config_hash": header.config_hash,
    }


def frames(episode: Episode) -> pa.Table:
    """One record a row: when the joints were read, who moved the arm, and each camera's real capture time."""
    rows = episode.rows
    columns: dict[str, Any] = {
        "tick": [row.tick for row in rows],
        "due_ns": [row.due_ns for row in rows],
        "read_ns": [row.read_ns for row in rows],
        "source": [row.source for row in rows],
        "missing": [row.missing for row in rows],
        "limits": [
            [f"{item.joint} {item.kind}: {item.wanted:g} -> {item.sent:g}" for item in row.limits] for row in rows
        ],
    }
    schema = [
        ("tick", pa.int64()),
        ("due_ns", pa.int64()),
        ("read_ns", pa.int64()),
        ("source", pa.string()),
        ("missing", pa.int32()),
        ("limits", pa.list_(pa.string())),
    ]
    for number, view in enumerate(episode.header.views):
        columns[f"{view.camera}/seq"] = [row.seen[number].seq for row in rows]
        columns[f"{view.camera}/capture_ns"] = [row.seen[number].capture_ns for row in rows]
        columns[f"{view.camera}/age_ms"] = _ages_ms(episode, number)
        columns[f"{view.camera}/repeat"] = [row.seen[number].repeat for row in rows]
        schema += [
            (f"{view.camera}/seq", pa.int64()),
            (f"{view.camera}/capture_ns", pa.int64()),
            (f"{view.camera}/age_ms", pa.float32()),
            (f"{view.camera}/repeat", pa.bool_()),
        ]
    return pa.Table.from_pydict(columns, schema=pa.schema(schema))


def _ages_ms(episode: Episode, camera: int) -> list[float]:
    return [(row.read_ns - row.seen[camera].capture_ns) / 1e6 for row in episode.rows]


def _longest_run(repeats: list[bool]) -> int:
    return max((len(list(run)) for repeated, run in groupby(repeats) if repeated), default=0)


def _source(episode: Episode) -> EpisodeSource:
    """A policy episode in which the leader was followed became an intervention."""
    leader = any(row.source == "leader" for row in episode.rows)
    if episode.header.source is EpisodeSource.POLICY and leader:
        return EpisodeSource.INTERVENTION
    return episode.header.source
