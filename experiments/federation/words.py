"""The sentences of the task, as the language model takes them."""

from pathlib import Path
from typing import NamedTuple, Self

import torch
from transformers import AutoTokenizer

from experiments.demo_policy.recipe import DISCS, task_text


class Words(NamedTuple):
    """One row a disc, in the order of DISCS."""

    tokens: torch.Tensor  # (discs, tokens)
    masks: torch.Tensor

    @classmethod
    def of(cls, vlm: Path) -> Self:
        found = AutoTokenizer.from_pretrained(vlm)([f"{task_text(f'{disc} disc')}\n" for disc in DISCS], padding=True)
        return cls(torch.tensor(found["input_ids"]), torch.tensor(found["attention_mask"]).bool())
