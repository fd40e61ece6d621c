"""Updates that lie about themselves are refused one by one; the round goes on with the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.engine.base import Execution
from airtune.errors import ModelError
from airtune.model.update import check_update
from airtune.plan import ModelShape


def refuse_malformed(execution: Execution, shape: ModelShape) -> Execution:
    """Return the execution without updates that nothing can be made of, their devices refused.

    Args:
        execution: as the engine gives it.
        shape: the unpruned model.
    """
    faults: dict[int, str] = {}
    for update in execution.updates:
        try:
            check_update(update, execution.state, shape)
        except ModelError as error:
            faults[update.device] = str(error)
    if not faults:
        return execution
    status, reasons = execution.results.status.copy(), list(execution.faults)
    for place, device in enumerate(execution.results.device.tolist()):
        if device in faults:
            status[place], reasons[place] = "refused", faults[device]
    return replace(
        execution,
        results=replace(execution.results, status=np.asarray(status)),
        updates=tuple(item for item in execution.updates if item.device not in faults),
        faults=tuple(reasons),
    )
