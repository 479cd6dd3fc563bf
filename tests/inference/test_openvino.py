"""The vision tower in OpenVINO, where it is installed: an optional extra."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agent.errors import Fatal
from agent.inference.bundle import Bundle
from agent.inference.engines import load_engine, openvino
from agent.inference.engines.arithmetic import Float32
from agent.inference.engines.shorter import torch_eyes
from agent.inference.loading import load_policy
from tests.inference.test_engines import bundled, settings

pytestmark = pytest.mark.skipif(not openvino.available(), reason="the extra `openvino` is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundled(tmp_path_factory.mktemp("smolvla"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_tower_sees_what_pytorch_sees(bundle: Bundle, cache: Path, precision: openvino.Precision) -> None:
    policy = load_policy(bundle).policy
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in range(3)]
    eyes = openvino.openvino_eyes(policy, precision, lambda: pictures, cache, threads=1)
    plain = torch_eyes(policy, Float32())
    for picture in pictures:
        error = (eyes(picture) - plain(picture)).norm() / plain(picture).norm()
        assert error < (1e-5 if precision == "fp32" else 0.1)
    kept = {file.suffix for file in cache.iterdir() if precision in file.name}
    assert kept == {".xml", ".bin"}, "and nothing that is pickled"

    def none() -> list[torch.Tensor]:
        raise AssertionError("converted again")

    again = openvino.openvino_eyes(policy, precision, none, cache, threads=1)
    assert torch.equal(again(pictures[0]), eyes(pictures[0]))


def test_the_engine_reports_what_it_is(bundle: Bundle, cache: Path) -> None:
    traits = load_engine(bundle, settings("openvino"), cache=cache).traits
    assert traits.name == "openvino"
    assert any(option.endswith(" vision") for option in traits.options)
    assert 0 < traits.deviation <= 1.0


def test_beyond_its_bound_it_falls_back_to_float32_then_refuses(bundle: Bundle, cache: Path) -> None:
    assert load_engine(bundle, settings("openvino", max_deviation=0.01), cache=cache).traits.options[0] == "fp32 vision"
    with pytest.raises(Fatal, match="openvino differs"):
        load_engine(bundle, settings("openvino", max_deviation=1e-9), cache=cache)


def test_it_tells_nobody_that_it_was_imported() -> None:
    """OpenVINO and NNCF send an event to a server from their import statements."""
    script = (
        "import sys\n"
        "from agent.inference.engines.openvino import precisions\n"
        "sys.addaudithook(lambda event, args: event in ('socket.connect', 'socket.getaddrinfo') and sys.exit(9))\n"
        "assert 'fp32' in precisions(None)\n"
        "import nncf\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
