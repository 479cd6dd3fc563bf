"""Which engine `auto` found to be the fastest: trying them all again at each start would cost more than it gains."""

import json
import os
import platform
from collections.abc import Container
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch

from agent.config import Policy as Settings
from agent.telemetry import logger

FILE: Final = "auto.json"


def remembered(cache: Path | None, settings: Settings, known: Container[str]) -> str | None:
    """The engine that was chosen here under the same circumstances; None when there is none, and all must be tried."""
    if cache is None or not (cache / FILE).exists():
        return None
    try:
        values = json.loads((cache / FILE).read_text(encoding="utf-8"))
        same = values["circumstances"] == _circumstances(settings) and values["engine"] in known
        return str(values["engine"]) if same else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the remembered engine cannot be read; trying all", reason=str(error))
        return None


def remember(cache: Path | None, settings: Settings, engine: str) -> None:
    if cache is None or engine == "reference":  # the reference is what is left when others fail: try them again
        return
    cache.mkdir(parents=True, exist_ok=True)
    new = cache / f".{FILE}.new"
    new.write_text(json.dumps({"engine": engine, "circumstances": _circumstances(settings)}), encoding="utf-8")
    os.replace(new, cache / FILE)


def _circumstances(settings: Settings) -> dict[str, str]:
    """What decides which engine is the fastest within its bound, besides the policy."""
    return {
        "torch": torch.__version__,
        "openvino": _version("openvino"),
        "nncf": _version("nncf"),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} x {os.cpu_count()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": str(torch.get_num_threads()),
        "max_deviation": str(settings.max_deviation),
        "flow_steps": str(settings.flow_steps),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
