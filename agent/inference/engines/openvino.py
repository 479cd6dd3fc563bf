"""SmolVLA's vision tower in OpenVINO, which has kernels for what mini PCs are made of, in fp32, bf16 or int8.

Two thirds of a chunk's time are spent in this tower. What was converted is kept as OpenVINO's own files (XML and raw
weights), so that later starts need neither the tracing nor NNCF.
"""

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from agent.errors import BadInput
from agent.inference.engines.arithmetic import Float32
from agent.inference.engines.shorter import Eyes
from agent.inference.engines.smolvla import weights as w
from agent.inference.engines.smolvla.vision import look
from agent.telemetry import logger

type Precision = Literal["int8", "bf16", "fp32"]

HINT: Final[dict[Precision, str]] = {"int8": "f32", "bf16": "bf16", "fp32": "f32"}
"""In what the matrices that are not bytes are multiplied."""

CALIBRATION_PICTURES: Final = 8
"""More did not make it more accurate; each takes a forward pass with all activations kept."""

INSTALL: Final = "Install it with `pip install so-agent[openvino]`."


def available() -> bool:
    return importlib.util.find_spec("openvino") is not None


def precisions(cache: Path | None) -> list[Precision]:
    """What this host runs in its own hardware, fastest first."""
    found: list[Precision] = ["int8"] if _quantisable(cache) else []
    if "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found.append("bf16")
    return [*found, "fp32"]


def openvino_eyes(
    policy: Any, precision: Precision, pictures: Callable[[], list[Tensor]], cache: Path | None, threads: int
) -> Eyes:
    """The tower, compiled for this CPU. `pictures` gives what int8 is calibrated with, (3, size, size) each in -1..1.

    Raises BadInput when OpenVINO, or NNCF for a first int8 conversion, is not installed.
    """
    ov = _openvino()
    how = {
        "INFERENCE_PRECISION_HINT": HINT[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = ov.Core().compile_model(_converted(ov, policy, precision, pictures, cache), "CPU", how)
    request = compiled.create_infer_request()

    def see(image: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([image.contiguous().numpy()])[0].copy())

    return see


def _openvino() -> Any:
    """The package, without its telemetry: importing it would otherwise tell a server so."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise BadInput(f"OpenVINO cannot be imported: {error}.", INSTALL) from error


def _quantisable(cache: Path | None) -> bool:
    return importlib.util.find_spec("nncf") is not None or (cache is not None and _file(cache, "int8").exists())


def _file(cache: Path, precision: Precision) -> Path:
    return cache / f"vision-{'int8' if precision == 'int8' else 'fp32'}-openvino-{_openvino().get_version()[:8]}.xml"


def _converted(
    ov: Any, policy: Any, precision: Precision, pictures: Callable[[], list[Tensor]], cache: Path | None
) -> Any:
    """From the cache, or traced, quantised where asked, and cached. bf16 is fp32's file, run in another way."""
    if cache is not None and _file(cache, precision).exists():
        return ov.Core().read_model(_file(cache, precision))
    model = _traced(ov, policy)
    if precision == "int8":
        model = _quantised(model, pictures()[:CALIBRATION_PICTURES])
    if cache is not None:
        _keep(ov, model, _file(cache, precision))
    return model


def _traced(ov: Any, policy: Any) -> Any:
    vision = w.vision(policy, Float32())

    class Tower(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return look(image, vision)

    example = torch.zeros(3, vision.size, vision.size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "sizes become constants": that is wanted
        return ov.convert_model(Tower(), example_input=example, input=[list(example.shape)])


def _quantised(model: Any, pictures: Sequence[Tensor]) -> Any:
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise BadInput(f"The int8 tower must be made with NNCF, which cannot be imported: {error}.", INSTALL) from error
    logger.info("quantising", pictures=len(pictures))
    return nncf.quantize(
        model,
        nncf.Dataset([picture.numpy() for picture in pictures]),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(pictures),
    )


def _keep(ov: Any, model: Any, file: Path) -> None:
    """Written whole or not at all: the XML, which is looked for, comes last."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=file.parent))
    try:
        ov.save_model(model, folder / file.name, compress_to_fp16=False)
        for name in (file.with_suffix(".bin").name, file.name):
            os.replace(folder / name, file.parent / name)
    finally:
        shutil.rmtree(folder)
