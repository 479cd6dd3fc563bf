"""Opens recorded datasets with stock lerobot, offline, and counts what is in them.

    python -m benchmarks.control_bench.verify ROOT...

Prints one JSON object: root -> rows, video frames and bytes per camera, or the error that lerobot raised.
"""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import av


def frames_in(video: Path) -> int:
    """Packets that carry a picture."""
    with closing(av.open(str(video))) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


def look(root: Path) -> dict[str, Any]:
    """Rows and video frames of a dataset, after its first and last row came out of lerobot with their pictures."""
    from lerobot.datasets import LeRobotDataset

    dataset = LeRobotDataset("bench/look", root=root)
    cameras = dataset.meta.video_keys
    for index in (0, len(dataset) - 1):
        row = dataset[index]
        for key in cameras:
            if not row[key].ndim == 3:
                raise ValueError(f"{key} of row {index} is no picture: shape {tuple(row[key].shape)}")
    videos = {key: sorted(root.glob(f"videos/{key}/*/*.mp4")) for key in cameras}
    return {
        "rows": len(dataset),
        "frames": {_camera(key): sum(map(frames_in, files)) for key, files in videos.items()},
        "bytes": {_camera(key): sum(file.stat().st_size for file in files) for key, files in videos.items()},
    }


def _camera(feature: str) -> str:
    return feature.rpartition(".")[2]


def main(argv: list[str]) -> None:
    found: dict[str, Any] = {}
    for root in argv[1:]:
        try:
            found[root] = look(Path(root))
        except Exception as error:  # noqa: BLE001 - whatever lerobot raises is the finding, and the next root is due
            found[root] = {"error": repr(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv)
