"""Who holds what of the base in a run that may cut it, and has it before the first round."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from airtune.cost import blocks_held
from airtune.deploy.federation.handout import Handout
from airtune.engine.remote.answers import Answer
from airtune.engine.remote.devices import Remote
from airtune.errors import MismatchError
from airtune.plan import Floats, Ints, Problem
from airtune.units import format_bytes
from airtune.wire.envelope import More

Ask = Callable[[dict[int, int | None]], dict[int, Answer]]
"""Has devices hold so many blocks, None for all, and returns their answers."""


def asking(
    remote: Remote, names: Sequence[str], handout: Handout | None, tell: Callable[..., None]
) -> Ask:
    """Return what has devices hold a part of the base, for which they may fetch it."""
    if handout is None:
        return remote.join
    more = More(handout.patience_s, handout.is_fetching)

    def ask(blocks: dict[int, int | None]) -> dict[int, Answer]:
        before = handout.served_bytes()
        answers = remote.join(blocks, more=more)
        handout.settle()
        for number, size_bytes in handout.served_bytes().items():
            if size_bytes > before[number]:
                fetched = format_bytes(size_bytes - before[number])
                tell(note=f"{names[number]} fetched {fetched} of the base model")
        return answers

    return ask


def have_held(
    ask: Ask, problem: Problem, memory_bytes: Floats, names: Sequence[str], *, cut: int | None,
    tell: Callable[..., None],
) -> frozenset[int]:  # fmt: skip
    """Have each device with data load its part; returns those that have it.

    Args:
        ask: reaches them.
        problem: of the run.
        memory_bytes: of each device, shape (devices,).
        names: of the devices.
        cut: blocks on every device, where the method fixes them.
        tell: told who holds what, and who cannot.

    Raises:
        MismatchError: if nobody has it.
    """
    total = problem.shape.blocks
    held = blocks_held(problem, memory_bytes, cut=cut)
    asked = np.flatnonzero(problem.devices.samples).tolist()
    tell(note=_told(names, held, asked, total))
    wanted = {one: None if held[one] == total else int(held[one]) for one in asked}
    answers = ask(wanted)
    refused = {one: answer.fault for one, answer in answers.items() if answer.status != "ok"}
    for one, fault in refused.items():
        tell(device=names[one], refused=fault)
    if len(refused) == len(asked):
        faults = "; ".join(f"{names[one]}: {fault}" for one, fault in refused.items())
        raise MismatchError(f"no device can take part: {faults}")
    return frozenset(asked) - refused.keys()


def _told(names: Sequence[str], held: Ints, asked: Sequence[int], total: int) -> str:
    """Return in words what devices are to hold.

    >>> _told(["a", "b"], np.array([4, 1]), [0, 1], 4)
    'of the model, a holds all 4 blocks; b holds the first 1'
    """
    parts = [
        f"{names[one]} holds {f'all {total} blocks' if held[one] == total else f'the first {held[one]}'}"
        for one in asked
    ]
    return f"of the model, {'; '.join(parts)}"
