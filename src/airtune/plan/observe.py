"""What a method may know: the problem at the start, an observation a round, results after it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from airtune.plan.assignment import Assignment, Assignments, CodecSpec
from airtune.plan.link import LinkState
from airtune.plan.measurements import CodedScale, Measurements
from airtune.plan.rounds_tables import PrunedRounds
from airtune.plan.shape import Bools, Floats, Ints, ModelShape
from airtune.plan.work import WorkSpec

Status = Literal["ok", "late", "refused", "failed", "absent"]
"""ok: its update counted · late: after the deadline · refused: NaN or malformed update ·
failed: the device gave up, out of memory for instance · absent: it was not there."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The training that every device does, as far as it costs anything."""

    batch: int
    tokens: int
    """Padded length of a sequence in tokens."""
    local_steps: int
    rank: int
    """LoRA rank of a method that does not choose one."""
    lora_targets: tuple[str, ...]
    """Names of the block's linear layers that carry adapters."""
    dtype_bytes: int = 4
    base_bits: int = 32
    """Bits a weight of the frozen base takes in memory (4 for a quantised base)."""
    checkpointing: bool = False
    loss_chunk: int = 0
    """Positions whose logits exist at a time; 0 = all of them."""
    micro_batches: int = 1
    """Into which a cut device's batch is divided over a stream, so that one computes while another
    crosses; their gradients add up to the batch's."""
    scored: float = 1.0
    """Fraction of a language model's positions whose loss counts; the head computes no other."""
    trains_head: bool = False
    """A task head is trained, sent and averaged with the adapters."""
    scores: Literal["none", "activation", "gradient"] = "none"
    """Scores of structures that are measured while training and sent with the update: from
    activations, or from the adapters' gradients, which takes products of the weights' size."""
    distills: bool = False
    """A slice learns from the dense base too, which is run forwards beside it."""
    optimiser_states: int = 2
    adapter_bytes: int = 4
    """Bytes of an adapter's number, on the wire where `upload` is the identity, and in training."""
    upload: CodecSpec = field(default_factory=CodecSpec)
    """How an update is coded on the wire: its difference to the adapters that were broadcast."""
    upload_feedback: bool = False
    """What coding lost is added to the device's next update."""
    download: CodecSpec = field(default_factory=CodecSpec)
    """How the broadcast is coded; the identity sends the full grid, any other codec the union of
    what the round's devices keep, at the largest of their ranks."""
    coded_scale: CodedScale = field(default_factory=CodedScale)
    """What was measured of both."""

    def upload_of(self, row: Assignment) -> CodecSpec:
        """Return how a device's update is coded: as it is told, or as the recipe says."""
        return row.upload or self.upload

    def upload_scale(self, spec: CodecSpec) -> float:
        """Return real over expected bytes of updates in a codec; 1 where they were not measured."""
        if spec == self.upload:
            return self.coded_scale.up
        return dict(self.coded_scale.uploads).get(spec, 1.0)


@dataclass(frozen=True, slots=True)
class Profiles:
    """The devices in columns of shape (devices,); None = hidden from this method."""

    names: tuple[str, ...]
    weight: Floats
    """Share of all training data, summing to 1."""
    samples: Ints
    link: Ints
    flops_per_s: Floats | None
    """Achieved in training, not peak."""
    memory_bytes: Floats | None
    power_w: Floats | None
    """Drawn while computing."""
    transmit_power_w: Floats | None
    dedicated: Bools | None = None
    """Devices that have a link to themselves and so all of it; None = not known, none has."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How much a model's answers change when heads, or channels, go; measured by forward passes.

    Costs are noise over signal of the last hidden state; fractions and costs rise from 0.
    """

    heads: tuple[float, ...]
    """Fractions of key-value groups removed."""
    heads_cost: tuple[float, ...]
    ffn: tuple[float, ...]
    """Fractions of FFN channels removed."""
    ffn_cost: tuple[float, ...]
    source: str
    """One line that says how it was measured."""


@dataclass(frozen=True, slots=True)
class Problem:
    """All that stands before the first round. Hidden parts are None."""

    shape: ModelShape
    devices: Profiles
    workload: Workload
    rounds: int
    seed: int
    deadline_s: float | None = None
    server_flops_per_s: float = 1e13
    server_memory_bytes: float = float("inf")
    work: WorkSpec = field(default_factory=WorkSpec)
    """What the method's local work does beside the knobs, as far as it costs anything."""
    measurements: Measurements | None = None
    """What the knobs cost in rounds, of those that the method wants; None = nothing was measured."""
    sensitivity: Sensitivity | None = None
    """What heads and channels cost; None = not measured, so what is typical counts."""
    device_bytes_per_month: float | None = None
    """Most that a device may receive and send in 30 days of the run; the loop keeps to it for every
    method. None = no cap."""
    joules_per_round: float | None = None
    """Most energy of a device in a round; the loop keeps to it for every method. None = no limit."""
    seconds: float | None = None
    """Of the run, on its clock: no round begins after them; None = the rounds alone count."""

    @property
    def pruning(self) -> tuple[PrunedRounds, ...]:
        """What pruning costs; () = it was not measured."""
        return () if self.measurements is None else self.measurements.pruning

    def with_measurements(self, found: Measurements | None) -> Problem:
        """Return the problem with what was measured, and coded adapters priced by it."""
        scale = CodedScale()
        if found is not None:
            others = tuple((row.codec, row.scale) for row in found.uploads)
            scale = replace(found.coded_scale, uploads=others)
        return replace(self, measurements=found, workload=replace(self.workload, coded_scale=scale))

    def progress(self, round: int, time_s: float) -> float:
        """Return the part of the budget, in rounds or seconds, that is used, in [0, 1]."""
        by_time = 0.0 if self.seconds is None else time_s / self.seconds
        return min(max(round / self.rounds, by_time), 1.0)


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known when a round is planned."""

    round: int
    time_s: float
    links: LinkState | None
    """None = hidden from this method."""
    available: Bools
    """Shape (devices,)."""
    flops_per_s: Floats | None
    """This round's achieved speed (devices change mode); None = hidden."""


@dataclass(frozen=True, slots=True)
class RoundColumns:
    """What a round takes of each device of a plan, in columns of shape (n,)."""

    download_s: Floats
    compute_s: Floats
    upload_s: Floats
    finish_s: Floats
    """Seconds from the start of the round to the arrival of the update, with waits; inf where none is
    expected, NaN where none came."""
    download_bytes: Floats
    upload_bytes: Floats
    flops: Floats
    peak_bytes: Floats

    def round_columns(self) -> dict[str, Floats]:
        """Return these columns by name."""
        return {each.name: getattr(self, each.name) for each in fields(RoundColumns)}


@dataclass(frozen=True, slots=True)
class Results(RoundColumns):
    """What came back, in columns over the devices of the plan: all a method ever learns."""

    device: Ints
    status: NDArray[np.str_]
    loss_first: Floats
    """Mean training loss of the first local step; NaN where unknown."""
    loss_last: Floats
    samples: Ints
    """Samples trained on this round."""
    energy_j: Floats
    importance: Floats
    """Sum of the LoRA importance the device reports; NaN where the method asks for none."""
    done: Assignments | None = None
    """What each device did, where it settled that for itself; None = as it was told."""
    agreement: Floats | None = None
    """How far each update agrees with the others (`airtune.model.agreement`); NaN where none came;
    None where the method does not ask for it."""
    agreement_noise: Floats | None = None
    """The scale of its noise."""
    judging_s: Floats | None = None
    """Seconds in which each device judged the model that it was given; None = none did."""
    server_s: Floats | None = None
    """Seconds that the server computed for each device's steps; 0 without a cut; NaN or None where
    nobody measured them."""
    step_up_bytes: Floats | None = None
    """Of `upload_bytes`: activations with what goes beside them; the rest is the update."""
    step_down_bytes: Floats | None = None
    """Of `download_bytes`: gradients; the rest is adapters."""
    predicted_s: Floats | None = None
    """When each device was predicted to finish, at the speeds and links that were known."""
    rank_left: Ints | None = None
    """Rank that each device wants from now on, where it prunes its own; None = as it was told."""
