"""What is timed against stock lerobot, and how far each of them is from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from torch import Tensor

from agent.inference.engines import openvino
from agent.inference.engines.arithmetic import Arithmetic, BFloat16, Float32, Int8, speedup
from agent.inference.engines.check import Deviation, answers, cases, compare, guide
from agent.inference.engines.computer import Computer
from agent.inference.engines.reference import Reference
from agent.inference.engines.shorter import Eyes, Shorter, torch_eyes
from agent.inference.loading import Loaded

STOCK: Final = "lerobot fp32"

IMITATED: Final = 0.7
"""Where a format is multiplied slower than this, of float32, the host imitates it. One chunk of it is enough."""


@dataclass
class Side:
    name: str
    computer: Computer
    deviation: Deviation
    turns: bool = True  # takes part in every round
    profiles: list[dict[str, float]] = field(default_factory=list)


def sides(loaded: Loaded, cache: Path, threads: int, say: Callable[[str], None]) -> Iterator[Side]:
    """Stock first. Each is asked the check's questions, which also warms it up."""
    asked = cases(loaded.bundle.manifest, loaded.policy.config, number=2)
    size = loaded.bundle.manifest.chunk_size
    stock = Reference(loaded)
    wanted, seconds = answers(stock, asked, size)
    asked.append(guide(asked[-1], wanted[0]))
    wanted += answers(stock, asked[-1:], size)[0]
    yield Side(STOCK, stock, Deviation((0.0,) * 6, 0.0, seconds))

    def side(name: str, arithmetic: Arithmetic, eyes: Eyes | None = None, *, turns: bool = True) -> Side:
        say(name)
        computer = Shorter.of(loaded, arithmetic, eyes)
        questions = asked if turns else asked[:1]
        found, seconds = answers(computer, questions, size)
        return Side(name, computer, compare(found, wanted[: len(found)], seconds), turns)

    plain, half, byte = Float32(), BFloat16(), Int8()
    yield side("exact", plain)
    yield side("bf16", half, turns=speedup(half) > IMITATED)
    yield side("int8", byte)
    yield side("int8 vision", plain, torch_eyes(loaded.policy, byte))
    if not openvino.available():
        say("OpenVINO is not installed: `pip install so-agent[openvino]`")
        return

    def pictures() -> list[Tensor]:
        return [
            image[0] for case in asked for image in loaded.policy.prepare_images(loaded.prepare(case.observation))[0]
        ]

    for precision in openvino.precisions(cache):
        eyes = openvino.openvino_eyes(loaded.policy, precision, pictures, cache, threads)
        yield side(f"openvino {precision}", half if speedup(half) > 1 else plain, eyes)
        if precision == "int8":
            yield side("openvino int8, int8", byte, eyes)
