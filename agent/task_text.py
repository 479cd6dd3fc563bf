"""The text of a task: what a dataset keeps of it, and what a policy may be told."""

from typing import Final

from agent.errors import BadInput

TASK_MAX_CHARS: Final = 30
"""The length that LeRobot's own community data sets agreed on for a task text."""

POLICY_TEXT_MAX_CHARS: Final = 200
"""What a policy that learnt from other data sets may be told; more than its tokenizer reads."""


def check_task(text: str, most: int = TASK_MAX_CHARS) -> str:
    """A usable task text, stripped. Raises BadInput when it is empty, too long or not one printable line."""
    task = text.strip()
    if not task:
        raise BadInput("The task text is empty.", f"Say in 1 to {most} characters what the arm does.")
    if len(task) > most:
        raise BadInput(
            f"The task text has {len(task)} characters; at most {most} are allowed.",
            'Shorten it, e.g. --task "pick up the red cube".',
        )
    if not task.isprintable():
        raise BadInput("The task text holds control characters.", "Use one line of printable text.")
    return task
