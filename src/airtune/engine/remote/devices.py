"""Devices at a distance: tasks go out to several at once, answers come back checked.

Whoever carries the messages is a `Transport`; this module knows neither Flower nor sockets. An answer
that is missing, late, damaged, replayed or of another device becomes a status and a sentence, and
touches no other device.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.engine.exchange import pack_own, pack_state, without_scores
from airtune.engine.message import Kind, RunSetup, SplitEndpoint, Task, seal_task
from airtune.engine.moments import SharedMoments, grams_bytes
from airtune.engine.pacing import claimed
from airtune.engine.remote.answers import Answer, answer_of, qualities
from airtune.engine.remote.updates import (
    SMALL_BYTES,
    Measured,
    measured_of,
    no_outcome,
    outcome_of,
    scores_bytes,
    update_bytes,
)
from airtune.errors import CodecError, ModelError
from airtune.model.state import GlobalState
from airtune.plan import Assignment, ModelShape, Pace
from airtune.wire.message import Message, More, Response, Transport
from airtune.wire.stage import Offer
from airtune.wire.traffic_budget import TrafficBudget, does_not_hold
from airtune.work.downloads import Broadcast
from airtune.work.evaluate import Quality
from airtune.work.jobs import Outcome
from airtune.work.uploads import GROUPS

_WORDS_BYTES = 32 << 10
"""What is set aside for the words of an answer, where a device's bytes of a month are capped."""
_ROW_BYTES = 4 << 10
"""Of an assignment and an endpoint in a task."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A device's round."""

    answer: Answer
    outcome: Outcome
    coded_bytes: int
    """Of its coded adapters and head."""
    row: Assignment | None = None
    """What it did; None where nothing came."""
    step_bytes: tuple[int, int] = (0, 0)
    """That crossed a cut up and down; in the answer's bytes."""
    server_s: float = 0.0
    """That the server computed for its steps."""


class Remote:
    """The devices of a run."""

    def __init__(
        self,
        transport: Transport,
        names: Sequence[str],
        setup: RunSetup,
        *,
        run: int,
        shape: ModelShape,
        patience_s: float,
        traffic_budget: TrafficBudget,
    ) -> None:
        """Know the devices by number; nothing is sent yet.

        Args:
            transport: reaches them.
            names: of all devices, by number.
            setup: what stays the same in all rounds.
            run: number of the run; stays when it is resumed.
            shape: of the unpruned model.
            patience_s: how long a silent device is waited for where there is no deadline.
            traffic_budget: bytes that each device may still receive and send.
        """
        self.traffic_budget = traffic_budget
        self._transport, self._names, self._setup = transport, tuple(names), setup
        self._run, self._shape, self._patience_s = run, shape, patience_s
        self._ways: dict[int, float] = {}
        self._busy: set[int] = set()
        self.counted: dict[int, int] = {}
        """The last round in which each device's update counted."""
        self.offers: Mapping[int, Offer] = {}
        """Where each device may fetch the base model."""
        self.data: Mapping[int, str] = {}
        """Hash of the data with which each device joined."""
        self._moments = SharedMoments()

    @property
    def run_name(self) -> str:
        """What the stream calls this run."""
        return str(self._run)

    @property
    def setup(self) -> RunSetup:
        """What stays the same in all rounds."""
        return self._setup

    def settle_on(self, setup: RunSetup) -> None:
        """Take what the devices said into account from now on."""
        self._setup = setup

    def online(self) -> frozenset[int]:
        """Return the numbers of the devices that can be reached now and have no task."""
        return self._transport.online() - self._busy

    def join(
        self, blocks: Mapping[int, int | None], *, more: More | None = None
    ) -> dict[int, Answer]:
        """Have devices load model and data and say what they have.

        Args:
            blocks: by device: of the base, which it is to hold; None = all, 0 = none yet.
            more: how much longer than usual they are waited for, to fetch the base model.
        """
        tasks = {
            device: replace(self._task("join", device, round=0), blocks=held)
            for device, held in blocks.items()
        }
        return self._ask(tasks, {}, limit=SMALL_BYTES, more=more)

    def measure(
        self, devices: Sequence[int], state: GlobalState, *, deadline_s: float | None = None
    ) -> tuple[dict[int, Measured], dict[int, Answer]]:
        """Have devices measure importance; returns what came of it in time, and every answer."""
        most_bytes = self._measured_bytes()
        blob, order = pack_state(state)
        tasks = {
            device: self._task("measure", device, round=state.round, order=order)
            for device in devices
        }
        answers = self._ask(
            tasks,
            {device: {"state": blob} for device in devices},
            limit=most_bytes + SMALL_BYTES,
            expected=dict.fromkeys(devices, float(most_bytes)),
            deadline_s=deadline_s,
        )
        found: dict[int, Measured] = {}
        for device, answer in answers.items():
            if answer.status == "ok":
                try:
                    found[device] = measured_of(answer.blobs, self._shape)
                except CodecError as error:
                    answers[device] = replace(answer, status="refused", fault=str(error))
        return found, answers

    def evaluate(
        self, devices: Sequence[int], state: GlobalState, *, deadline_s: float | None = None
    ) -> tuple[dict[int, Quality], dict[int, str]]:
        """Have devices judge a model on their held-out shares; by device, and why some have not."""
        blob, order = pack_state(state)
        tasks, blobs = {}, {}
        for device in devices:
            moments, beside = self._moments.for_task(device, state.grams if state.kept else None)
            task = self._task("evaluate", device, round=state.round, order=order)
            tasks[device] = replace(task, moments=moments)
            blobs[device] = {"state": blob} | beside
        answers = self._ask(tasks, blobs, limit=SMALL_BYTES, deadline_s=deadline_s)
        found = qualities(answers)
        faults = {
            device: answer.fault or "it claims a loss or an accuracy that cannot be"
            for device, answer in answers.items()
            if device not in found
        }
        return found, faults

    def train(
        self,
        rows: Sequence[Assignment],
        state: GlobalState,
        *,
        round: int,
        learning_rate: float = 1.0,
        sent: Broadcast | None = None,
        pace: Pace | None = None,
        deadline_s: float | None = None,
        upload_bps: Mapping[int, float] | None = None,
        endpoints: Mapping[int, SplitEndpoint] | None = None,
        expected: Mapping[int, float] | None = None,
        unpaced: frozenset[int] = frozenset(),
        judges: frozenset[int] = frozenset(),
        is_wanted: Callable[[], bool] | None = None,
    ) -> dict[int, Trained]:
        """Have devices do a round.

        Args:
            rows: what each is told.
            state: where they start.
            round: counted from 0.
            learning_rate: of this round, as a part of the setup's.
            sent: the broadcast of the state, where it is coded.
            pace: what devices settle for themselves; None = nothing.
            deadline_s: seconds after which an answer is late; None = patience.
            upload_bps: what each device's share of its link carries; None = not known.
            unpaced: devices that have a link to themselves, and send as fast as it goes.
            judges: devices that judge the state too, before they train on it.
            endpoints: where the devices of a split round find the server's half.
            expected: the most that each update takes, for caps.
            is_wanted: asked again and again; where it says no, nobody is waited for any longer.

        Returns:
            By device; every row has one.
        """
        blob, order = self._broadcast(rows, state, sent)
        coded = {} if sent is None else dict(sent.payloads)
        setup = replace(self._setup, train=self._setup.train.at(learning_rate))
        grams = state.grams if _slices(rows, state) else None
        tasks, blobs = {}, {}
        for row in rows:
            moments, beside = self._moments.for_task(row.device, None if row.cut else grams)
            tasks[row.device] = replace(
                self._task("train", row.device, round=round, order=order),
                row=row,
                setup=setup,
                blocks=row.cut or None,
                pace=pace,
                way_s=self._ways.get(row.device, 0.0),
                upload_bps=None if upload_bps is None else upload_bps.get(row.device),
                is_paced=row.device not in unpaced,
                is_judging=row.device in judges and row.cut == 0,
                counted=self.counted.get(row.device, -1),
                endpoint=None if endpoints is None else endpoints.get(row.device),
                moments=moments,
            )
            own = pack_own(state, row.device)
            blobs[row.device] = (
                {"state": blob} | coded | beside | ({} if own is None else {"own": own})
            )
        answers = self._ask(
            tasks,
            blobs,
            limit=update_bytes(state, self._shape),
            deadline_s=deadline_s,
            is_wanted=is_wanted,
            expected={
                device: size + scores_bytes(self._shape) - SMALL_BYTES
                for device, size in (expected or {}).items()
            },
        )
        return {row.device: self._trained(row, state, answers[row.device], pace) for row in rows}

    def _broadcast(
        self, rows: Sequence[Assignment], state: GlobalState, sent: Broadcast | None
    ) -> tuple[bytes, tuple[str, ...]]:
        """Pack what all are sent; scores only where somebody slices by them."""
        known = state if _slices(rows, state) else without_scores(state)
        return pack_state(known, sent, shape=self._shape)

    def _task(self, kind: Kind, device: int, *, round: int, order: tuple[str, ...] = ()) -> Task:
        return Task(
            kind,
            self._run,
            round,
            device,
            self._names[device],
            secrets.token_hex(8),
            self._setup,
            base=self.offers.get(device),
            order=order,
            data=self.data.get(device, ""),
        )

    def _ask(
        self,
        tasks: Mapping[int, Task],
        blobs: Mapping[int, Mapping[str, bytes]],
        *,
        limit: int,
        deadline_s: float | None = None,
        expected: Mapping[int, float] | None = None,
        more: More | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> dict[int, Answer]:
        """Send tasks and return the answers; of all bytes this is the one way out and in.

        What may cross is set aside first. A device whose month does not hold it is sent nothing;
        of one that does not answer, all that was set aside counts.
        """
        messages: dict[int, Message] = {}
        aside: dict[int, float] = {}
        with self.traffic_budget.together():
            for device, task in tasks.items():
                reply_bytes = _WORDS_BYTES + (expected or {}).get(device, 0.0)
                if self.traffic_budget.cap_bytes is not None:
                    task = replace(task, most_bytes=int(reply_bytes))
                message = replace(seal_task(task, blobs.get(device)), answer_bytes=limit)
                steps_bytes = 0.0 if task.endpoint is None else task.endpoint.most_bytes or 0.0
                if self.traffic_budget.take(device, message.size_bytes + reply_bytes + steps_bytes):
                    messages[device], aside[device] = message, message.size_bytes + reply_bytes
        waits_s = self._patience_s if deadline_s is None else deadline_s
        if is_wanted is not None:
            waits_s, more = 0.0, More(waits_s, is_wanted)
        responses: Mapping[int, Response] = {}
        if messages:
            self._busy.update(messages)
            try:
                responses = self._transport.send(messages, deadline_s=waits_s, more=more)
            finally:
                self._busy.difference_update(messages)
        answers: dict[int, Answer] = {}
        with self.traffic_budget.together():
            for device, task in tasks.items():
                if device not in messages:
                    answers[device] = Answer("absent", _USED_UP, math.nan, 0, 0)
                    continue
                answer = answer_of(task, messages[device], responses.get(device), limit=limit)
                if answer.received_bytes:
                    self._settle(device, answer.sent_bytes + answer.received_bytes - aside[device])
                answers[device] = answer
                self._moments.settle(device, task.moments, is_ok=answer.status == "ok")
        return answers

    def _measured_bytes(self) -> int:
        """Return the most that what a device measured of the dense model can take."""
        moments = grams_bytes(self._shape) if self._setup.work.mend == "least-squares" else 0
        return scores_bytes(self._shape) - SMALL_BYTES + moments

    def settle_steps(self, device: int, most_bytes: float, crossed_bytes: float) -> None:
        """Give back what was set aside for a device's steps and did not cross."""
        self._settle(device, crossed_bytes - most_bytes)

    def _settle(self, device: int, size_bytes: float) -> None:
        self.traffic_budget.spend(np.array([device]), np.array([size_bytes]))

    def most_bytes(
        self, rows: Sequence[Assignment], state: GlobalState, expected: Mapping[int, float]
    ) -> dict[int, float]:
        """Return what a whole round can take of each device: scores, training, and a judgement.

        Args:
            rows: what each would be told.
            state: where they would start.
            expected: the most that each update takes, its steps included.
        """
        blob, order = pack_state(state)
        found = {}
        for row in rows:
            task = self._task("train", row.device, round=state.round, order=order)
            own = pack_own(state, row.device)
            blobs = {"state": blob} | ({} if own is None else {"own": own})
            scores = self._measured_bytes()
            message = seal_task(task, blobs).size_bytes + _ROW_BYTES + scores
            times = 3 if state.importance is None and (row.prune_heads or row.prune_ffn) else 2
            found[row.device] = times * (message + _WORDS_BYTES + scores) + expected[row.device]
        return found

    def _trained(
        self, row: Assignment, state: GlobalState, answer: Answer, pace: Pace | None
    ) -> Trained:
        reply = answer.reply
        if reply is None:
            return Trained(answer, no_outcome(row.device, answer.fault), 0)
        spent_s = reply.spent.compute_s
        self._ways[row.device] = max(answer.after_s - spent_s - answer.upload_s, 0.0)
        try:
            if reply.status == "ok":
                row = claimed(row, pace, reply.figures, computed_s=spent_s, after_s=answer.after_s)
            outcome = outcome_of(row, state, reply, answer, setup=self._setup, shape=self._shape)
        except (CodecError, ModelError) as error:
            fault = f"update refused: {error}"
            answer = replace(answer, status="refused", fault=fault)
            return Trained(answer, no_outcome(row.device, fault), 0)
        coded = sum(len(answer.blobs[name]) for name in GROUPS if name in answer.blobs)
        return Trained(answer, outcome, coded, row)


def _slices(rows: Sequence[Assignment], state: GlobalState) -> bool:
    """Return whether a device of a round trains a slice."""
    return bool(state.devices) or any(row.prune_heads or row.prune_ffn for row in rows)


_USED_UP = does_not_hold("the message and its answer")
