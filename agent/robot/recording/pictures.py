"""Two pictures of an episode for people: what the cameras saw, and what the joints did.

Reads the committed dataset with pyarrow and PyAV; needs neither lerobot nor torch.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agent.messages import JOINTS
from agent.robot.recording.index import STATION_PATH, DatasetIndex, frames_path

COLUMNS: Final = 8
"""Moments on a contact sheet: as many as stay recognisable side by side on a screen."""

DPI: Final = 110
MEASURED, SENT, LIMITED, REPEATED = "#1f6fb2", "#e07b00", "#c62828", "#c62828"
INK, FAINT = "#222222", "#d9d9d9"

type Image = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class _Episode:
    """What both pictures need of one committed episode."""

    facts: dict[str, Any]
    fps: float
    measured: Any  # rows x 6
    sent: Any  # rows x 6
    limits: list[list[str]]
    repeats: dict[str, list[bool]]  # per camera
    videos: dict[str, tuple[str, Path, float]]  # camera -> view name, file, start within it


def draw(dataset: Path, episode: int, folder: Path) -> list[Path]:
    """Write `episode-N-cameras.png` and `episode-N-joints.png`; returns their paths. Raises BadInput without one."""
    what = _load(dataset, episode)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if what.videos:
        written.append(folder / f"episode-{episode:03d}-cameras.png")
        _contact_sheet(what).savefig(written[-1], dpi=DPI)
    written.append(folder / f"episode-{episode:03d}-joints.png")
    _joint_plot(what).savefig(written[-1], dpi=DPI)
    return written


def _load(dataset: Path, episode: int) -> _Episode:
    facts = DatasetIndex(dataset).show(episode)
    info = json.loads((dataset / "meta" / "info.json").read_bytes())
    row: dict[str, Any] = {}
    for file in sorted((dataset / "meta" / "episodes").glob("*/*.parquet")):
        names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
        row |= next((r for r in pq.read_table(file, columns=names).to_pylist() if r["episode_index"] == episode), {})
    data = dataset / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
    wanted = [("episode_index", "=", episode)]
    table = pq.read_table(data, columns=["observation.state", "action"], filters=wanted).to_pydict()
    times: dict[str, Any] = {}
    if (dataset / frames_path(episode)).exists():
        times = pq.read_table(dataset / frames_path(episode)).to_pydict()
    views = json.loads((dataset / STATION_PATH).read_bytes())["views"] if (dataset / STATION_PATH).exists() else {}
    names_of = {key: view for view, key in views.items()}
    videos = {}
    for key, spec in info["features"].items():
        if spec["dtype"] == "video":
            prefix = f"videos/{key}"
            path = dataset / info["video_path"].format(
                video_key=key, chunk_index=row[f"{prefix}/chunk_index"], file_index=row[f"{prefix}/file_index"]
            )
            videos[key.rpartition(".")[2]] = (names_of.get(key, ""), path, float(row[f"{prefix}/from_timestamp"]))
    return _Episode(
        facts,
        float(info["fps"]),
        np.array(table["observation.state"]),
        np.array(table["action"]),
        times.get("limits", []),
        {camera: times.get(f"{camera}/repeat", []) for camera in videos},
        videos,
    )


def _frames_at(path: Path, times_s: list[float], fps: float) -> list[Image]:
    """The frames nearest to these increasing times, each found from the key frame before it."""
    images: list[Image] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        unit = float(stream.time_base or 0)
        for at in times_s:
            container.seek(max(0, round(at / unit)), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts * unit > at - 0.5 / fps:
                    pixels: Any = frame.to_ndarray(format="rgb24")
                    images.append(pixels)
                    break
    return images


def _title(what: _Episode) -> tuple[str, str]:
    facts = what.facts
    judged = {True: "success", False: "failure", None: "not judged"}[facts["success"]]
    parts = [
        f"{facts['frames']} frames",
        f"{facts['seconds']:.1f} s",
        f"{what.fps:g} fps",
        str(facts["source"]),
        judged,
    ]
    if facts["salvaged"]:
        parts.append("salvaged")
    return f"Episode {facts['episode']}: {facts['task']}", "   ·   ".join(parts)


def _figure(what: _Episode, width: float, height: float) -> Figure:
    """A figure with the episode's title, its facts below, and 0.75 inch taken for both."""
    figure = Figure(figsize=(width, height), facecolor="white")
    title, facts = _title(what)
    figure.text(0.25 / width, 1 - 0.32 / height, title, fontsize=15, weight="bold", color=INK, va="center")
    figure.text(0.25 / width, 1 - 0.60 / height, facts, fontsize=10, color="#666666", va="center")
    return figure


def _contact_sheet(what: _Episode) -> Figure:
    rows = len(what.measured)
    chosen = sorted({round(row) for row in np.linspace(0, rows - 1, min(COLUMNS, rows))})
    sheets = {}
    for camera, (_, path, start_s) in what.videos.items():
        sheets[camera] = _frames_at(path, [start_s + row / what.fps for row in chosen], what.fps)
    across, left, gap, head, label = 1.9, 0.25, 0.08, 0.85, 0.36
    heights = [across * images[0].shape[0] / images[0].shape[1] for images in sheets.values()]
    width = max(7.0, 2 * left + len(chosen) * (across + gap) - gap)  # room for the title of a short episode
    height = head + sum(heights) + len(sheets) * label + 0.35
    figure = _figure(what, width, height)
    y = height - head
    for (camera, images), tall in zip(sheets.items(), heights, strict=True):
        view = what.videos[camera][0]
        repeats = sum(what.repeats[camera])
        note = f"   {view}" if view else ""
        note += f"   {repeats} repeated" if repeats else ""
        figure.text(left / width, (y - 0.17) / height, camera, fontsize=11, weight="bold", color=INK, va="center")
        figure.text(
            (left + 0.09 * len(camera) + 0.1) / width,
            (y - 0.17) / height,
            note,
            fontsize=9,
            color="#666666",
            va="center",
        )
        y -= label + tall
        for column, (row, image) in enumerate(zip(chosen, images, strict=True)):
            x = left + column * (across + gap)
            axes = figure.add_axes((x / width, y / height, across / width, tall / height))
            axes.imshow(image, aspect="auto", interpolation="antialiased")
            repeated = bool(what.repeats[camera]) and what.repeats[camera][row]
            _bare(axes, REPEATED if repeated else FAINT, 2.0 if repeated else 0.6)
    for column, row in enumerate(chosen):
        x = left + column * (across + gap) + across / 2
        figure.text(
            x / width, 0.18 / height, f"{row / what.fps:.2f} s", fontsize=10, color=INK, ha="center", va="center"
        )
    return figure


def _bare(axes: Axes, edge: str, width: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(edge)
        spine.set_linewidth(width)


def _joint_plot(what: _Episode) -> Figure:
    time_s = np.arange(len(what.measured)) / what.fps
    figure = _figure(what, 13.0, 7.2)
    grid = figure.add_gridspec(2, 3, left=0.055, right=0.985, top=0.845, bottom=0.085, hspace=0.30, wspace=0.16)
    for number, joint in enumerate(JOINTS):
        axes = figure.add_subplot(grid[number // 3, number % 3])
        axes.plot(time_s, what.sent[:, number], color=SENT, linewidth=1.4, label="sent")
        axes.plot(time_s, what.measured[:, number], color=MEASURED, linewidth=1.4, label="measured")
        limited = [row for row, items in enumerate(what.limits) if any(item.startswith(f"{joint} ") for item in items)]
        if limited:
            axes.plot(
                time_s[limited], what.sent[limited, number], linestyle="", marker="o", markersize=3.5,
                color=LIMITED, label="limited",
            )  # fmt: skip
        error = float(np.abs(what.sent[:, number] - what.measured[:, number]).mean())
        unit = "%" if joint == "gripper" else "°"
        axes.set_title(joint.replace("_", " "), loc="left", fontsize=11, weight="bold", color=INK)
        axes.set_title(f"mean |sent - measured| {error:.1f}{unit}", loc="right", fontsize=8.5, color="#666666")
        axes.yaxis.set_major_formatter(f"{{x:g}}{unit}")
        # A still joint must look still, not like noise blown up to the height of the plot.
        low, high = axes.get_ylim()
        if high - low < 5:
            axes.set_ylim((low + high) / 2 - 2.5, (low + high) / 2 + 2.5)
        axes.set_xlim(0, max(time_s[-1], 1 / what.fps))
        axes.grid(color=FAINT, linewidth=0.6)
        axes.tick_params(labelsize=9, colors="#444444", length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(FAINT)
        if number >= 3:
            axes.set_xlabel("seconds", fontsize=9, color="#444444")
    handles = [
        Line2D([], [], color=SENT, linewidth=2, label="sent"),
        Line2D([], [], color=MEASURED, linewidth=2, label="measured"),
    ]
    if any(what.limits):
        handles.append(Line2D([], [], color=LIMITED, marker="o", linestyle="", label="changed by the safety filter"))
    figure.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(0.988, 0.985), ncols=3, frameon=False, fontsize=10
    )
    return figure


def main(argv: list[str]) -> int:
    """`python -m agent.robot.recording.pictures DATASET EPISODE FOLDER`: prints the paths of what it drew."""
    for path in draw(Path(argv[1]), int(argv[2]), Path(argv[3])):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
