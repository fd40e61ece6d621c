"""The uplink of updates: really coded and decoded, with what coding lost remembered.

A cut device sends the adapters of its own blocks, and its head where labels stay; a frozen device
part is not sent at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.cost import upload_bytes
from airtune.cost.payload import score_bytes
from airtune.cost.split import split_cost
from airtune.errors import CodecError
from airtune.keys import generator
from airtune.model.state import GlobalState, Update
from airtune.plan import Assignment, Floats, Problem, RoundPlan
from airtune.work.jobs import Outcome
from airtune.work.uploads import CodedUpdate, Residuals, decode_update, encode_update, returned_of


@dataclass(frozen=True, slots=True)
class Sent:
    """Updates of a round on their way; by row of the plan."""

    outcomes: Mapping[int, Outcome]
    """With the updates as the server decodes them; refused where a codec refuses."""
    size_bytes: Floats
    """Shape (n,): as coded, or as expected where nothing was coded."""
    coded: Mapping[int, CodedUpdate]


class Uplink:
    """Codes the updates of a run's devices, one after another by round."""

    def __init__(self, problem: Problem) -> None:
        """Begin with nothing lost."""
        self._problem = problem
        self._residuals = Residuals()

    def is_coded(self, plan: RoundPlan) -> bool:
        """Whether an update of a plan is coded, or makes up for what coding has lost before."""
        workload = self._problem.workload
        groups = plan.assignments.upload_groups(workload.upload)
        return workload.upload_feedback or any(
            spec.kind != "identity" and rows.any() for spec, rows in groups
        )

    def send(self, plan: RoundPlan, state: GlobalState, outcomes: Mapping[int, Outcome]) -> Sent:
        """Code and decode updates; what is lost counts only once `settle` is told they came.

        Args:
            plan: n devices.
            state: as broadcast.
            outcomes: by row of the plan, with the updates as trained.
        """
        arrived, coded = dict(outcomes), {}
        for index, outcome in outcomes.items() if self.is_coded(plan) else ():
            if outcome.update is None:
                continue
            row = plan.assignments.row(index)
            try:
                arrived[index], coded[index] = self._cross(outcome, outcome.update, state, row)
            except CodecError as error:
                arrived[index] = replace(
                    outcome, status="refused", update=None, reason=f"update refused: {error}"
                )
        taken = {index: item.size_bytes for index, item in coded.items()}
        return Sent(arrived, self.sizes(plan, taken), coded)

    def sizes(self, plan: RoundPlan, coded_bytes: Mapping[int, int]) -> Floats:
        """Return what each update of a plan takes, shape (n,).

        Args:
            plan: n devices.
            coded_bytes: by row of the plan, of its payloads; those of the identity, and rows that
                are not there, count as expected.
        """
        shape, workload = self._problem.shape, self._problem.workload
        beside = score_bytes(shape, workload, plan.assignments)
        size_bytes = upload_bytes(shape, workload, plan.assignments)
        is_cut = plan.assignments.cut > 0
        if is_cut.any():
            parts = split_cost(self._problem, plan.assignments)
            size_bytes = np.where(is_cut, parts.adapter_up_bytes, size_bytes)
            beside = np.where(is_cut, 0.0, beside)
        for index, size in coded_bytes.items():
            if workload.upload_of(plan.assignments.row(index)).kind != "identity":
                size_bytes[index] = size + beside[index]
        return size_bytes

    def settle(self, sent: Sent, state: GlobalState, came: Mapping[int, Outcome]) -> None:
        """Remember what coding lost of the updates that came in time; the others stand as before."""
        if not self._problem.workload.upload_feedback:
            return
        for index, outcome in came.items():
            if outcome.update is not None and index in sent.coded:
                self._residuals.keep(
                    outcome.update, state, self._problem.shape, sent.coded[index].lost
                )

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Return what has been lost so far, as arrays."""
        return self._residuals.arrays()

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a snapshot.

        Raises:
            CheckpointError: if it is not one of an uplink.
        """
        self._residuals = Residuals.from_arrays(arrays)

    def _cross(
        self, outcome: Outcome, update: Update, state: GlobalState, row: Assignment
    ) -> tuple[Outcome, CodedUpdate]:
        shape, work = self._problem.shape, self._problem.work
        spec = self._problem.workload.upload_of(row)
        reference = returned_of(state, shape, update.kept, update.rank, cut=row.cut, work=work)
        owed = None
        if self._problem.workload.upload_feedback:
            owed = self._residuals.of(update, state, shape, reference)
        stream = generator(self._problem.seed, "upload", update.round, update.device)
        coded = encode_update(update, reference, spec, stream, owed)
        decoded = decode_update(update, coded.payloads, reference, spec)
        return replace(outcome, update=decoded), coded
