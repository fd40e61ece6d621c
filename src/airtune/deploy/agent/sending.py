"""A device's updates as they are sent: coded, with what coding lost of the last one that counted."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from airtune.engine.exchange import importance_tensors
from airtune.engine.message import Task, pack_tensors
from airtune.keys import generator
from airtune.model.state import GlobalState, Update
from airtune.plan import ModelShape
from airtune.work.uploads import Residuals, encode_update, returned_of


class SentUpdates:
    """Codes updates; remembers what was lost of one until the server says whether it counted."""

    def __init__(self) -> None:
        self._lost = Residuals()
        self._run = -1
        self._pending: tuple[int, Update, GlobalState, Mapping[str, torch.Tensor]] | None = None

    def coded(
        self, task: Task, shape: ModelShape, state: GlobalState, update: Update
    ) -> dict[str, bytes]:
        """Return an update as it is sent, by group, with its scores.

        Args:
            task: of the round; says in which round this device's update counted last.
            shape: of the unpruned model.
            state: where the round started.
            update: what the device learnt.
        """
        setup = task.setup
        self._settle(task, shape)
        cut = 0 if task.row is None else task.row.cut
        spec = setup.workload.upload if task.row is None else setup.workload.upload_of(task.row)
        reference = returned_of(state, shape, update.kept, update.rank, cut=cut, work=setup.work)
        owed = None
        if setup.workload.upload_feedback:
            owed = self._lost.of(update, state, shape, reference)
        stream = generator(setup.seed, "upload", update.round, update.device)
        coded = encode_update(update, reference, spec, stream, owed)
        self._pending = (task.round, update, state, coded.lost)
        sent = dict(coded.payloads)
        if update.importance is not None:
            sent["importance"] = pack_tensors(importance_tensors(update.importance))
        return sent

    def _settle(self, task: Task, shape: ModelShape) -> None:
        """Keep what coding lost of the last update, if that counted; a new run starts with nothing."""
        if task.run != self._run:
            self._lost, self._run, self._pending = Residuals(), task.run, None
        if self._pending is not None and self._pending[0] == task.counted:
            _, update, state, lost = self._pending
            self._lost.keep(update, state, shape, lost)
        self._pending = None
