"""The device's side of a run: it holds the base model, its data and its own state, and does tasks.

One of these lives in an agent's worker process for as long as the agent runs. What a task needs and
is not at hand (the model, the data read as the recipe says) is loaded once and kept; tasks are done
by the same `work` as on the local engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from airtune.cost import gram_peak_bytes
from airtune.deploy.agent.holding import Holding, needed_bytes
from airtune.deploy.agent.loads import Loaded, Loads
from airtune.deploy.agent.reply import PeakMemory, figures_of, finite, reply_to
from airtune.deploy.agent.sending import SentUpdates
from airtune.deploy.memory import is_out_of_memory
from airtune.engine.exchange import importance_tensors, unpack_state
from airtune.engine.message import Joined, Reply, Spent, Task, open_task, pack_tensors, seal_reply
from airtune.engine.moments import BLOB, HeldMoments, pack_grams
from airtune.errors import AirtuneError, InfeasibleError, MismatchError
from airtune.model.base import BaseModel
from airtune.model.kept import keep_all
from airtune.model.mending import measure_grams
from airtune.model.state import GlobalState, Update, initial_state
from airtune.plan import Assignment, ModelShape
from airtune.units import format_bytes
from airtune.wire.message import Message
from airtune.work.evaluate import evaluate
from airtune.work.importance import calibration_batches, measure_importance, measured_batches
from airtune.work.jobs import Job, Outcome
from airtune.work.network import current_base, tuned_network
from airtune.work.train import train
from airtune.work.uploads import GROUPS

if TYPE_CHECKING:  # grpc is needed for split rounds alone
    from airtune.wire.channel import Way

Pace = Callable[[int, float], float]
"""(bytes, bit/s) -> seconds it waited so that a device keeps to its share of the link."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What the owner of a device has decided."""

    data: str
    """File or folder of the device's data, or "recipe"."""
    model: str | None = None
    """Folder of the base model on this device; None = where the recipe says."""
    compute: str = "auto"
    """Where torch computes: auto, cpu or cuda."""
    memory_bytes: float | None = None
    """What a job may take; None = the owner has said nothing."""
    probe: Mapping[str, Any] = field(default_factory=dict)
    host: str = ""
    """Of the server, where a task names a port alone."""
    cache: Path | None = None
    """Where base models that the server hands out are kept; None = nothing is fetched."""
    any_path: bool = False
    """With "recipe": its data may be a file anywhere, not only below the folder one is in."""


class Device:
    """Does tasks, one after the other."""

    def __init__(
        self,
        settings: DeviceSettings,
        *,
        pace: Pace | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """Hold nothing yet.

        Args:
            settings: the owner's.
            pace: waits until an upload fits the device's share; None = never waits.
            say: told why a task was not done, the sentence that the server is told.
        """
        self._settings = settings
        self._pace, self._say = pace, say
        self._peak = PeakMemory()
        self._holding = Holding(
            model=settings.model, compute=settings.compute, cache=settings.cache, host=settings.host
        )
        self._loads = Loads(self._holding, data=settings.data, any_path=settings.any_path)
        self._sent, self._moments = SentUpdates(), HeldMoments()
        self._way: Way | None = None

    def handle(self, message: Message, way: Way | None = None) -> Message:
        """Do a task.

        Args:
            message: the task.
            way: by which it came, where a split round and a base model are found too.

        Raises:
            MismatchError: if the task is of another version.
            CodecError: if it is damaged.
        """
        try:
            task, blobs = open_task(message)
        except AirtuneError as error:
            self._say(str(error))
            raise
        try:
            self._way = way
            return self._do(task, blobs, download_s=message.came_s)
        except AirtuneError as error:
            return self._failed(task, str(error))
        except (MemoryError, OSError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            left = self._settings.memory_bytes
            has = "less than that" if left is None else format_bytes(left)
            return self._failed(task, f"out of memory: this device has {has}")

    def _failed(self, task: Task, reason: str) -> Message:
        """Tell both sides why a task was not done."""
        self._say(f"round {task.round}, {task.kind}: {reason}")
        return seal_reply(replace(reply_to(task), status="failed", reason=reason))

    def _do(self, task: Task, blobs: Mapping[str, bytes], *, download_s: float) -> Message:
        began = time.perf_counter()
        self._peak.begin()
        loaded = self._loads.of(task, self._way)
        self._refuse_too_large(task, loaded)
        base = None if task.blocks == 0 else self._holding.base(task, self._way)
        if task.setup.threads:
            torch.set_num_threads(task.setup.threads)
        load_s = time.perf_counter() - began
        judging_s, judgement = None, dict[str, float | None]()
        if task.is_judging and base is not None:
            judgement = self._judgement(task, loaded, base, blobs)
            judging_s = time.perf_counter() - began - load_s
        reply, sent = self._answered(task, loaded, base, blobs)
        compute_s = time.perf_counter() - began - load_s - (judging_s or 0.0)
        reply = replace(
            reply,
            figures={**judgement, **reply.figures},
            peak_bytes=self._peak.bytes(),
            spent=Spent(load_s, compute_s, judging_s, download_s),
        )
        message = self._within_cap(task, seal_reply(reply, sent))
        return replace(message, rate_bps=task.upload_bps if task.is_paced else None)

    def _answered(
        self, task: Task, loaded: Loaded, base: BaseModel | None, blobs: Mapping[str, bytes]
    ) -> tuple[Reply, dict[str, bytes]]:
        if task.kind == "join":
            return self._join(task, loaded, base), {}
        if base is None:
            raise MismatchError(
                f"task {task.kind} needs the base, and names no block; it is refused"
            )
        answer = {"measure": self._measure, "train": self._train, "evaluate": self._evaluate}
        return answer[task.kind](task, loaded, base, blobs)

    def _refuse_too_large(self, task: Task, loaded: Loaded) -> None:
        """Refuse what the memory does not hold, before anything of it is loaded.

        Raises:
            InfeasibleError: with what it takes.
        """
        has = self._settings.memory_bytes
        needed = needed_bytes(task, loaded.shape)
        if has is not None and needed > has:
            raise InfeasibleError(
                f"out of memory: needs {format_bytes(needed)}, this device has {format_bytes(has)}"
            )

    def _within_cap(self, task: Task, reply: Message) -> Message:
        """Return an answer, or why it is not sent, if this device's month does not hold it."""
        if task.most_bytes is None or reply.size_bytes <= task.most_bytes:
            return reply
        return self._failed(
            task,
            f"an answer of {format_bytes(reply.size_bytes)} is not sent, {format_bytes(task.most_bytes)} "
            "were set aside for it (limits.device_bytes_per_month)",
        )

    def _join(self, task: Task, loaded: Loaded, base: BaseModel | None) -> Reply:
        held = loaded.data.train
        lengths = [len(row) for row in getattr(held, "tokens", ())]
        joined = Joined(
            rows=len(held),
            held_out=len(loaded.data.validation),
            tokens=sum(lengths),
            truncated=int(getattr(held, "truncated", 0)),
            longest=max(lengths, default=0),
            fingerprint="" if base is None else base.fingerprint,
            tokenizer=loaded.tokenizer,
            data=loaded.data_in(task.run),
            memory_bytes=self._settings.memory_bytes,
            probe=self._settings.probe,
        )
        return replace(reply_to(task), joined=joined)

    def _measure(
        self, task: Task, loaded: Loaded, base: BaseModel, blobs: Mapping[str, bytes]
    ) -> tuple[Reply, dict[str, bytes]]:
        setup, data = task.setup, loaded.data.train
        whole = current_base(base, self._state(task, blobs, base))
        batch, batches = setup.workload.batch, measured_batches(setup.work, setup.workload.batch)
        report = measure_importance(
            whole,
            data,
            criterion=setup.work.importance,
            batch=batch,
            batches=batches,
            seed=setup.seed,
            device=task.device,
        )
        sent = {"importance": pack_tensors(importance_tensors(report))}
        if self._measures_moments(task, loaded.shape):
            drawn = calibration_batches(
                whole, data, batch=batch, batches=batches, seed=setup.seed, device=task.device
            )
            sent[BLOB] = pack_grams(measure_grams(whole.network, whole.shape, drawn))
        return reply_to(task), sent

    def _measures_moments(self, task: Task, shape: ModelShape) -> bool:
        """Return whether second moments are asked for, and this device's memory holds them."""
        has = self._settings.memory_bytes
        needed = gram_peak_bytes(shape, task.setup.workload)
        return task.setup.work.mend == "least-squares" and (has is None or needed <= has)

    def _evaluate(
        self, task: Task, loaded: Loaded, base: BaseModel, blobs: Mapping[str, bytes]
    ) -> tuple[Reply, dict[str, bytes]]:
        return replace(reply_to(task), figures=self._judgement(task, loaded, base, blobs)), {}

    def _judgement(
        self, task: Task, loaded: Loaded, base: BaseModel, blobs: Mapping[str, bytes]
    ) -> dict[str, float | None]:
        """Return the quality of the model that came, on what this device holds out."""
        setup, state = task.setup, self._state(task, blobs, base)
        lora = tuned_network(base, state, scale=setup.train.scale, work=setup.work)
        if not len(loaded.data.validation):
            return {"count": 0.0}
        found = evaluate(
            lora.network,
            loaded.data.validation,
            chunk=setup.workload.loss_chunk,
            pass_tokens=setup.workload.batch * setup.workload.tokens,
        )
        return {
            "loss": finite(found.loss),
            "count": float(found.count),
            "accuracy": None if found.accuracy is None else finite(found.accuracy),
        }

    def _train(
        self, task: Task, loaded: Loaded, base: BaseModel, blobs: Mapping[str, bytes]
    ) -> tuple[Reply, dict[str, bytes]]:
        setup, state = task.setup, self._state(task, blobs, base)
        if task.row is None:
            raise MismatchError(f"round {task.round} came without an assignment; it is refused")
        if task.row.cut:
            return self._train_split(task, task.row, loaded, base, state)

        def work(row: Assignment) -> Outcome:
            job = Job(task.device, row, loaded.data.train, 1.0)
            began = time.perf_counter()
            [outcome] = train(
                base,
                state,
                [job],
                settings=setup.train,
                work=setup.work,
                workload=setup.workload,
                seed=setup.seed,
                round=task.round,
            )
            loaded.speed.learn(row, time.perf_counter() - began)
            return outcome

        row, settled = task.row, {}
        if task.pace is not None:
            row, arm = loaded.speed.settle(
                row,
                task.pace,
                way_s=task.way_s,
                up_bps=task.upload_bps,
                memory_bytes=self._settings.memory_bytes,
                try_step=work,
            )
            settled = {"arm": float(arm), "steps": float(row.local_steps)}
        outcome = work(row)
        reply = replace(
            reply_to(task),
            status=outcome.status,
            reason=outcome.reason,
            samples=outcome.samples,
            rank_left=outcome.rank_left,
            figures=figures_of(outcome) | settled,
        )
        if outcome.update is None:
            return reply, {}
        return reply, self._sent.coded(task, loaded.shape, state, outcome.update)

    def _train_split(
        self, task: Task, row: Assignment, loaded: Loaded, base: BaseModel, state: GlobalState
    ) -> tuple[Reply, dict[str, bytes]]:
        """Train this device's half; its steps go over the stream."""
        # grpc is needed for split rounds alone
        from airtune.deploy.agent.split_session import run_session

        setup = task.setup
        address = "" if task.endpoint is None else task.endpoint.address
        part = run_session(
            task,
            row,
            base=base,
            state=state,
            data=loaded.data.train,
            way=self._way or self._holding.way_to(address),
            pace=self._pace,
            memory=loaded.memory,
        )
        update = Update(
            task.device,
            task.round,
            keep_all(loaded.shape),
            row.rank,
            part.adapters,
            part.head,
            samples=setup.workload.batch * part.steps,
        )
        figures = {
            "steps": float(part.steps),
            "wait_s": part.wait_s,
            "stepping_s": part.compute_s,
            "connections": float(part.connections),
        }
        reply = replace(reply_to(task), samples=update.samples, rank_left=row.rank, figures=figures)
        return reply, self._sent.coded(task, loaded.shape, state, update)

    def _state(self, task: Task, blobs: Mapping[str, bytes], base: BaseModel) -> GlobalState:
        """Return the state of a task, for the base it belongs to."""
        payloads = {name: blobs[name] for name in GROUPS if name in blobs}
        blank = None
        if payloads:
            blank = initial_state(base, task.setup.workload, task.setup.seed)
        return unpack_state(
            blobs.get("state", b""),
            task.order,
            round=task.round,
            own=blobs.get("own"),
            payloads=payloads,
            blank=blank,
            shape=base.shape,
            grams=self._moments.of(task.moments, blobs, base.shape),
        )
