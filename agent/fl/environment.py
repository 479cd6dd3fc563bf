"""The environment of Flower's programs: a home of their own, nothing sent or asked elsewhere."""

import os
import sys
from pathlib import Path


def quiet(home: Path) -> dict[str, str]:
    """This process's own, without what concerns Flower in it; `home` becomes FLWR_HOME."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    programs = Path(sys.executable).parent  # Flower's programs start each other through PATH
    return kept | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }
