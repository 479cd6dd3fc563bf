"""A process that makes a policy of a candidate adapter and compares it with the policy in use, on held-out episodes.

`python -m agent.fl.candidate JOB` answers on its standard output with one JSON object: a Verdict, or a Problem. It may
be ended at any moment; nothing of it is seen then.

What is compared is how far the predicted actions are from those that people took, in degrees (gripper: percent): two
policies may scale their joints differently, so that their losses cannot be compared, but not their actions.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.errors import AgentError, BadInput
from agent.inference.bundle import Bundle, open_bundle

STEPS: Final = 1
"""A plan wants some; nothing is learnt here."""

SEED: Final = 30_000_001


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths are absolute."""

    adapter: str  # folder
    policies: str  # folder of bundles, in which its base is
    current: str | None  # folder of the policy in use
    name: str  # of what is made
    target: str  # folder below which it is made
    datasets: tuple[str, ...]
    held_out: float
    threads: int


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """Mean distance to what people did, over the same rows; None where there are none, or no policy is in use."""

    folder: str  # of the new bundle
    hash: str
    base: str  # its base's name here
    base_hash: str
    before: float | None
    after: float | None
    rows: int
    seconds: float


class Problem(msgspec.Struct, frozen=True, tag="problem"):
    code: str
    message: str
    hint: str = ""


def compare(job: Job) -> Verdict:
    """In the process. Raises AgentError."""
    import time

    from agent.fl.adapter import open_adapter, policy_from
    from agent.fl.base import find_by_hash

    began_s = time.monotonic()
    adapter = open_adapter(Path(job.adapter))
    digest = adapter.manifest.policy_hash
    base = find_by_hash(Path(job.policies), digest)
    if base is None:
        raise BadInput(
            f"The policy {adapter.manifest.policy} ({digest}), which the adapter of {adapter.manifest.run} belongs to, "
            "is not here.",
            "Import it, with `so-agent policy import`.",
        )
    shutil.rmtree(job.target, ignore_errors=True)  # of a process that was ended
    made = policy_from(adapter, base, Path(job.target), job.name)
    datasets = [Path(folder) for folder in job.datasets]
    after, rows = judge(made, datasets, job.held_out)
    before = judge(open_bundle(Path(job.current)), datasets, job.held_out)[0] if job.current and rows else None
    return Verdict(
        str(made.folder), made.hash, base.folder.name, base.hash, before, after, rows, time.monotonic() - began_s
    )


def judge(bundle: Bundle, datasets: Sequence[Path], held_out: float) -> tuple[float | None, int]:
    """The mean error on held-out episodes of all datasets that fit the policy, and of how many rows it is."""
    import torch

    from agent.inference.loading import load_policy

    loaded = load_policy(bundle)
    total, count, rows = 0.0, 0, 0
    for dataset in datasets:
        for number, batch in enumerate(_held_out(loaded, dataset, held_out)):
            torch.manual_seed(SEED + number)  # the same noise for both policies
            with torch.no_grad():
                chunk = loaded.policy.predict_action_chunk(dict(loaded.preprocessor(batch)))
            error = (loaded.postprocessor(chunk.float()).cpu() - batch["action"]).abs()
            there = ~batch["action_is_pad"]
            total += float(error[there].sum())
            count += int(there.sum()) * error.shape[-1]
            rows += len(there)
    return (total / count if count else None), rows


def _held_out(loaded: Any, dataset: Path, share: float) -> Any:
    """Batches of the held-out rows; none where the dataset does not fit the policy, or nothing is held out."""
    from agent.fl.dataset import divide
    from agent.inference.training.plan import Wish, make_plan
    from agent.inference.training.rows import Rows

    episodes = divide(dataset, share)
    if not episodes.held_out or not episodes.learnt:
        return
    try:
        plan = make_plan(Wish(steps=STEPS, name="judged", hold_out=0), loaded.bundle, dataset)
    except BadInput:
        return
    plan = msgspec.structs.replace(plan, episodes=episodes.learnt, held_out=episodes.held_out)
    yield from Rows(plan, dataset, loaded.policy.config, loaded.device).held_out()


def main() -> None:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    try:
        import torch

        torch.set_num_threads(job.threads)
        result: Verdict | Problem = compare(job)
    except AgentError as error:
        result = Problem(error.code, error.message, error.hint)
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    main()
