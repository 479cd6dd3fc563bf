"""Builds the site with every way to a network shut. As `python -m tests.docs.builder FOLDER`; prints what it found."""

import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "lerobot", "mujoco", "cv2", "transformers", "flwr")
ASKING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def main(folder: str) -> None:
    asked: list[str] = []

    def shut(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ASKING and not (event == "socket.connect" and arguments[0].family == socket.AF_UNIX):
            asked.append(f"{event} {arguments[1:]}")
            raise OSError("there is no network here")

    sys.addaudithook(shut)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=folder))
    print(json.dumps({"heavy": sorted(set(HEAVY) & set(sys.modules)), "asked": asked}))


if __name__ == "__main__":
    main(sys.argv[1])
