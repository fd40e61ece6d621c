"""A device's answer, checked; one that is missing, late, damaged or false is a status and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from airtune.engine.message import Reply, Spent, Task, open_reply
from airtune.errors import CodecError, MismatchError
from airtune.plan.observe import Status
from airtune.records import range_fault
from airtune.wire.message import Message, Response
from airtune.work.evaluate import Quality


@dataclass(frozen=True, slots=True)
class Answer:
    """A device's answer, checked, or why there is none."""

    status: Status
    fault: str
    after_s: float
    sent_bytes: int
    received_bytes: int
    reply: Reply | None = None
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    upload_s: float = 0.0
    """Of the answer, as it came in."""

    @property
    def spent(self) -> Spent | None:
        """Where the device's time went, as it says: each part no longer than the server waited for it.

        What is no number counts as all of that; None = it said nothing.
        """
        if self.reply is None:
            return None
        most_s, said = max(self.after_s - self.upload_s, 0.0), self.reply.spent

        judging_s = None if said.judging_s is None else _believed(said.judging_s, most_s)
        return Spent(
            _believed(said.load_s, most_s),
            _believed(said.compute_s, most_s),
            judging_s,
            _believed(said.download_s, most_s),
        )

    @property
    def work_s(self) -> float:
        """How long the device computed, without waits for the server; NaN = it said nothing."""
        spent = self.spent
        if spent is None or self.reply is None:
            return math.nan
        stepping_s = self.reply.figures.get("stepping_s")
        return spent.compute_s if stepping_s is None else _believed(stepping_s, spent.compute_s)


def _believed(seconds: float, most_s: float) -> float:
    return max(seconds, 0.0) if seconds <= most_s else most_s


def answer_of(task: Task, message: Message, response: Response | None, *, limit: int) -> Answer:
    """Return what came of a task.

    Args:
        task: as it was given.
        message: that held it.
        response: what the way back brought; None = nothing.
        limit: the most bytes that can answer it.
    """
    sent = message.size_bytes
    if response is None or response.message is None:
        after_s = math.nan if response is None else response.after_s
        fault = "nothing came back" if response is None else response.fault
        status: Status = "absent"
        if response is not None and (response.is_late or response.is_refused):
            status = "late" if response.is_late else "refused"
        return Answer(status, fault, after_s, sent, 0)
    received = response.message.size_bytes
    try:
        reply, blobs = open_reply(response.message, task, max_bytes=limit)
    except (CodecError, MismatchError) as error:
        return Answer("refused", str(error), response.after_s, sent, received)
    return Answer(
        reply.status,
        reply.reason,
        response.after_s,
        sent,
        received,
        reply,
        blobs,
        response.message.came_s,
    )


def qualities(answers: Mapping[int, Answer]) -> dict[int, Quality]:
    """Return how devices judge the model that they were given; who claims what cannot be is left out."""
    found = {
        device: _quality(answer.reply)
        for device, answer in answers.items()
        if answer.status == "ok" and answer.reply is not None and "count" in answer.reply.figures
    }
    return {
        device: one
        for device, one in found.items()
        if not range_fault({"loss": one.loss, "accuracy": one.accuracy})
    }


def _quality(reply: Reply) -> Quality:
    loss, count = (
        number_of(reply.figures.get("loss")),
        int(number_of(reply.figures.get("count", 0.0))),
    )
    accuracy = reply.figures.get("accuracy")
    perplexity = None if accuracy is not None else math.exp(min(loss, 700.0))
    return Quality(loss, perplexity, accuracy, max(count, 0))


def number_of(value: float | None) -> float:
    """Return a figure of an answer; NaN where it is not finite or was not said."""
    return math.nan if value is None else float(value)
