"""Is a dataset whole? Every row counted, every frame there. Needs pyarrow and PyAV, but neither lerobot nor torch."""

import json
import sys
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq

from agent.robot.recording.index import frames_path, sidecar_path

TIMESTAMP_TOLERANCE_S = 1e-4
"""lerobot's own tolerance between a row's timestamp and its frame."""


def check(dataset: Path) -> list[str]:
    """One sentence for everything that is wrong; empty for a dataset that is whole, or not there yet."""
    path = dataset / "meta" / "info.json"
    if not path.exists():
        leftovers = [found.name for found in dataset.glob("*")] if dataset.exists() else []
        return [f"{dataset} has files but no meta/info.json"] if leftovers else []
    try:
        info = json.loads(path.read_bytes())
    except ValueError as error:
        return [f"meta/info.json cannot be read: {error}"]
    problems = [f"{left.name} is left over from a commit" for left in sorted(dataset.glob(".commit-*"))]
    episodes: dict[int, dict[str, Any]] = {}
    for file in sorted((dataset / "meta" / "episodes").glob("*/*.parquet")):
        names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
        for row in pq.read_table(file, columns=names).to_pylist():
            episodes[int(row["episode_index"])] = row
    total = int(info["total_episodes"])
    problems += [f"episode {number} has no metadata" for number in range(total) if number not in episodes]
    expected = 0
    for number in range(total):
        if (episode := episodes.get(number)) is not None:
            problems += _check_episode(dataset, info, episode, expected)
            expected += int(episode["length"])
    if expected != info["total_frames"]:
        problems.append(f"info.json counts {info['total_frames']} frames, the episodes {expected}")
    return problems


def _check_episode(dataset: Path, info: dict[str, Any], episode: dict[str, Any], start: int) -> list[str]:
    number, length = int(episode["episode_index"]), int(episode["length"])
    where = f"episode {number}"
    problems = []
    if episode["dataset_from_index"] != start or episode["dataset_to_index"] != start + length:
        problems.append(f"{where}: rows are not counted from where the last episode ended")
    data = dataset / info["data_path"].format(
        chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"]
    )
    if data.exists():
        wanted = [("episode_index", "=", number)]
        rows = pq.read_table(data, columns=["frame_index", "index", "timestamp"], filters=wanted).to_pydict()
        if rows["frame_index"] != list(range(length)) or rows["index"] != list(range(start, start + length)):
            problems.append(f"{where}: {data.name} does not hold rows 0 to {length - 1} in order")
        late = (abs(at - row / info["fps"]) for row, at in enumerate(rows["timestamp"]))
        if max(late, default=0.0) > TIMESTAMP_TOLERANCE_S:
            problems.append(f"{where}: timestamps are not those of {info['fps']} rows a second")
    else:
        problems.append(f"{where}: {data.relative_to(dataset)} is missing")
    for key, spec in info["features"].items():
        if spec["dtype"] == "video":
            problems += [f"{where}, {key}: {problem}" for problem in _check_video(dataset, info, episode, key)]
    if (dataset / sidecar_path(number)).exists() and not (dataset / frames_path(number)).exists():
        problems.append(f"{where}: {frames_path(number)} is missing")
    return problems


def _check_video(dataset: Path, info: dict[str, Any], episode: dict[str, Any], key: str) -> list[str]:
    prefix = f"videos/{key}"
    path = dataset / info["video_path"].format(
        video_key=key, chunk_index=episode[f"{prefix}/chunk_index"], file_index=episode[f"{prefix}/file_index"]
    )
    if not path.exists():
        return [f"{path.relative_to(dataset)} is missing"]
    begin, end = episode[f"{prefix}/from_timestamp"], episode[f"{prefix}/to_timestamp"]
    half = 0.5 / info["fps"]
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            unit = stream.time_base or 0
            times = [float(packet.pts * unit) for packet in container.demux(stream) if packet.pts is not None]
    except (av.FFmpegError, IndexError) as error:
        return [f"{path.name} cannot be read: {error}"]
    frames = sorted(at for at in times if begin - half < at < end - half)
    if len(frames) != episode["length"]:
        return [f"{len(frames)} frames for {episode['length']} rows"]
    shifted = [abs(at - begin - row / info["fps"]) for row, at in enumerate(frames)]
    return ["frames are not where the rows' timestamps say"] if max(shifted) > half else []


def main(argv: list[str]) -> int:
    """`python -m agent.robot.recording.check DATASET`: one problem a line; exit status 1 when there is any."""
    problems = check(Path(argv[1]))
    sys.stdout.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
