"""The sections and keys of a recipe, their defaults and their ranges.

Keys are called what peft and transformers call them. The data section is `airtune.data.DataSpec`
itself. Sections hold values only; `airtune.run` is where they become objects.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from airtune.data.embedded import ARITHMETIC
from airtune.data.spec import DataSpec
from airtune.plan import CodecSpec, Mend
from airtune.plan.assignment import CodecKind
from airtune.recipe.values import Duration, Energy, Name, Section, Share, Size, TorchDevice, rising

EMBEDDED = "embedded"
"""`model.source` of the small model that is shipped."""
ON_DEVICE = "devices"
"""`data.source: devices`: every device has its own data, named by `airtune agent --data`."""

TargetMetric = Literal["loss", "perplexity", "accuracy"]

_UNHASHED = frozenset({"name", "output", "compare", "threads", "tariff"})
"""What does not change a run's numbers, or is checked apart."""


class ModelSection(Section):
    """The base model."""

    source: str = Field(default=EMBEDDED, min_length=1)
    """Hub id, local folder, GGUF file, or `embedded` for the small model that is shipped."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the base in memory and in the arithmetic."""
    device: TorchDevice = "auto"
    """Where this machine computes: auto, cpu, cuda or cuda:1."""
    load_in_4bit: bool = False
    """Hold the base in 4 bits (CUDA, extra `quantised`)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    allow_pickle: bool = False
    """Read weights that are there as pickles only; they can run code, so trust who made them."""
    stage: Literal["none", "server"] = "none"
    """Over real devices: `server` = one that lacks the base fetches it from the server, once."""


class LoraSection(Section):
    """The adapters."""

    r: int = Field(default=8, ge=1, le=1024)
    """Rank, for methods that do not choose one."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """The scale is alpha over r, one constant for all ranks."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the blocks' linear layers that carry adapters."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""


class TrainSection(Section):
    """What every device does in a round, and how many rounds there are."""

    rounds: int = Field(default=20, ge=1)
    """Rounds of the run, at most."""
    seconds: Duration | None = Field(default=None, gt=0)
    """Seconds of the run on its clock: no round begins after them; none = rounds alone count."""
    local_steps: int = Field(default=5, ge=1)
    """Optimiser steps of a device in a round."""
    steps: Literal["fixed", "deadline"] = "fixed"
    """fixed = local_steps for all; deadline = as many as fit, by the device's own clock, into a time
    that is learnt from what answers took, at most four times local_steps. `fedspine` times its own."""
    async_buffer: int = Field(default=0, ge=0)
    """Updates with which an asynchronous round ends, whoever they come from; the other devices go on
    and count later, weighted for staleness (FedBuff). 0 = a round waits for all it asked."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Sequences in a step."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Of AdamW."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """Part of the learning rate that is left at the end of rounds or seconds, falling linearly; 1 =
    constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW, on the adapters."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 = never."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more FLOPs."""
    loss_chunk: int = Field(default=0, ge=0)
    """Positions whose logits exist at a time; 0 = all of them."""
    mend: Mend | None = None
    """What stands for what a slice lacks: none, mean or least-squares; not given = as the method has
    it, which is mean."""
    distill: float | None = Field(default=None, ge=0, lt=1)
    """How much the dense base's logits count beside the labels while a slice of a language model
    trains; not given = as the method has it, which is 0."""
    server_average: float = Field(default=0.0, ge=0, lt=1)
    """Most that the past counts in the running mean of the server's weights, .9 for instance, which
    is then evaluated and exported; 0 = the last weights are."""
    server_momentum: float = Field(default=0.0, ge=0, lt=1)
    """Part of a round's change that the server adds to the next; 0 = none."""


class FleetSection(Section):
    """The devices and their links."""

    source: str | dict[str, Any] = "pocket"
    """Name of a preset, a YAML file, or the fleet itself; see `airtune list fleets`."""
    devices: int | None = Field(default=None, ge=1)
    """How many devices are drawn; none = as many as the fleet says."""
    seed: int | None = Field(default=None, ge=0)
    """Draws the devices; none = the recipe's seed."""
    bandwidth_mhz: float | None = Field(default=None, gt=0)
    """Of the fleet's one shared radio link, up and down alike; none = as the fleet says."""
    participation: Share = Field(default=1.0, gt=0, le=1)
    """Fraction of the available devices that are asked in a round."""
    availability: Share = Field(default=1.0, gt=0, le=1)
    """Probability that a device's link is up in a round, times what the fleet says of the device."""
    dropout: Share = Field(default=0.0, ge=0, lt=1)
    """Probability that a device vanishes after it was told what to do."""
    learn: bool = True
    """Where the fleet says that its devices are not as declared (`truth`), learn true speeds and rates from
    what rounds took; no = believe what is declared. Real devices are always learnt."""


class MethodSection(BaseModel):
    """The method; its settings are the keys beside `name`."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: str = Field(default="jcpba", min_length=1)
    """A name of `airtune list methods`, or `./mine.py:Mine`."""

    @property
    def settings(self) -> dict[str, Any]:
        """What stands beside the name."""
        return dict(self.model_extra or {})


class TargetSection(Section):
    """The quality that is to be reached, fixed before the run."""

    metric: TargetMetric
    """Measured on the validation share of the devices, smoothed over three evaluations."""
    value: float = Field(gt=0)
    """Loss and perplexity are to fall to it, accuracy to rise to it."""
    stop: bool = False
    """End the run when it is reached."""


class CodecSection(Section):
    """A codec with its settings; which of them count depends on the kind."""

    kind: CodecKind = "identity"
    """identity, fp16, topk (the largest entries, in few levels), or deadzone."""
    keep: float = Field(default=0.1, gt=0, le=1)
    """Fraction of entries kept (topk)."""
    bits: int = Field(default=4, ge=2, le=8)
    """Bits of a kept level, sign included (topk)."""
    step: float = Field(default=0.75, gt=0, le=100)
    """Quantiser step in standard deviations (deadzone)."""

    def spec(self) -> CodecSpec:
        """Return the codec; what its kind does not read has the default, so that equals are equal.

        >>> CodecSection(kind="fp16", keep=0.5).spec() == CodecSpec("fp16")
        True
        """
        if self.kind == "topk":
            return CodecSpec("topk", keep=self.keep, bits=self.bits)
        return CodecSpec(self.kind, step=self.step if self.kind == "deadzone" else CodecSpec().step)


_SPLIT_MENU = (
    CodecSection(kind="fp16"),
    *(CodecSection(kind="deadzone", step=step) for step in (0.25, 0.4)),
)
"""What a real language model bears at any cut; small models and images bear coarser steps."""


class UploadSection(CodecSection):
    """How every method's updates are coded on the wire: their difference to what was broadcast."""

    feedback: bool = False
    """Add what coding lost to the device's next update."""


class DownloadSection(CodecSection):
    """How the server's adapters are coded for every method's devices.

    The identity sends all of them, any other kind only what some device of the round keeps.
    """


class SplitSection(Section):
    """The short measurement of what compressing cut activations costs."""

    codecs: tuple[CodecSection, ...] = Field(default=_SPLIT_MENU, min_length=1)
    """The menu that a split method chooses from."""
    cuts: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(rising)] = ()
    """Cuts at which distortion is measured, rising; empty = up to four, spread over the model."""
    rounds: int = Field(default=4, ge=1)
    """Rounds of each short run."""
    devices: int = Field(default=4, ge=1)
    """Devices of each short run, at most."""
    micro_batches: int = Field(default=1, ge=1, le=8)
    """Parts into which a real device's batch is divided in a split round, so that one computes while
    another crosses; must divide the batch. On the virtual clock a step has one."""


class ProtectionSection(Section):
    """What the server does against dishonest devices, and for privacy."""

    clip_norm: float = Field(default=0.0, ge=0)
    """Largest norm of an update's difference to the broadcast state; 0 = not clipped."""
    aggregate: Literal["trimmed-mean", "krum"] | None = None
    """Robust rule instead of the method's; for methods whose updates are of one shape."""
    trim: Share = Field(default=0.1, ge=0, lt=0.5)
    """Share of values left out at either end (trimmed-mean)."""
    liars: int = Field(default=1, ge=1)
    """Number of dishonest devices to withstand (krum); a round needs 2 * liars + 3 updates."""
    noise: float = Field(default=0.0, ge=0)
    """Gaussian noise in units of clip_norm over the number of updates; 0 = none."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """The delta for which the epsilon of the noise is computed."""

    @model_validator(mode="after")
    def _noise_needs_a_bound(self) -> ProtectionSection:
        if self.noise and (not self.clip_norm or self.aggregate is not None):
            raise ValueError(
                "noise needs clip_norm above 0 and the plain average; give clip_norm, and leave "
                "aggregate out"
            )
        return self


class LimitsSection(Section):
    """What no method may exceed."""

    device_bytes_per_month: Size | None = Field(default=None, gt=0)
    """Most that a device receives and sends in 30 days of the run, `500MB` for instance; one whose
    rest does not hold a round is left out of it. none = no cap."""
    joules_per_round: Energy | None = Field(default=None, gt=0)
    """Most energy that a device may use in a round, by the cost model; one that would use more is
    left out of it. none = no limit."""


class TariffSection(Section):
    """What energy and data cost, for `airtune plan`; it changes no run."""

    per_kwh: float | None = Field(default=None, ge=0)
    """Price of a kilowatt-hour that devices draw; none = not stated."""
    per_gb: float | None = Field(default=None, ge=0)
    """Price of 10^9 bytes that cross a link, either way; none = not stated."""
    currency: str = Field(default="", max_length=8)
    """What prices are in, `EUR` for instance."""


class EvaluationSection(Section):
    """How quality is measured; off the clock for every method."""

    every: int = Field(default=1, ge=1)
    """Rounds between validations; the last round always has one."""
    exact_match: bool = False
    """Generate answers of the test set and compare what follows `####`."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest generated answer."""
    leakage: bool = False
    """At the end of a split run, measure what an attacker reads out of what crossed the cut."""


class CalibrationSection(Section):
    """The short measurement of what pruning costs this model on this data."""

    rounds: int = Field(default=8, ge=2)
    """Rounds of each short run."""
    devices: int = Field(default=6, ge=1)
    """Devices of each short run, at most."""
    budgets: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=0.5)], ...], AfterValidator(rising)
    ] = Field(default=(0.15, 0.35), min_length=1)
    """Mean pruning rates that are tried beside no pruning, rising."""
    uploads: tuple[CodecSection, ...] = (
        CodecSection(kind="fp16"),
        CodecSection(kind="deadzone", step=0.75),
    )
    """Codecs of updates that are tried beside the recipe's `upload` and none."""


class CompareSection(Section):
    """What `airtune compare` runs unless the command line says otherwise."""

    methods: tuple[str | dict[str, Any], ...] = ("jcpba", "fedavg-lora", "best-bandwidth")
    """Names, or mappings of `name`, settings, and perhaps a `label`, an `upload` of their own and, under
    `set`, other keys of the recipe with dots."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    """Each seed draws fleet, channels, partition and batches anew, the same for every method."""
    baseline: str | None = None
    """The method that the others are compared with; none = fedavg-lora, or the first."""


class Recipe(Section):
    """A whole run: every section and key of a recipe, with its default."""

    name: Name = ""
    """End of the run folder's name; none = the method's."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides every draw: fleet, channels, partition, batches, adapters."""
    model: ModelSection = ModelSection()
    lora: LoraSection = LoraSection()
    data: DataSpec = DataSpec(source=ARITHMETIC)
    train: TrainSection = TrainSection()
    fleet: FleetSection = FleetSection()
    method: MethodSection = MethodSection()
    target: TargetSection | None = None
    evaluation: EvaluationSection = EvaluationSection()
    calibration: CalibrationSection = CalibrationSection()
    upload: UploadSection = UploadSection()
    download: DownloadSection = DownloadSection()
    split: SplitSection = SplitSection()
    protection: ProtectionSection = ProtectionSection()
    limits: LimitsSection = LimitsSection()
    tariff: TariffSection = TariffSection()
    quality_budget: Share | None = Field(default=None, ge=0, lt=1)
    """Loss that pruning may cost at equal rounds, `2%` for instance; none = time decides."""
    deadline_s: Duration | None = Field(default=None, gt=0)
    """Seconds after which a round ends; later updates are dropped. none = it waits for all."""
    threads: int = Field(default=0, ge=0)
    """CPU threads, 0 = torch's choice; a run repeats bit for bit at the same number."""
    output: str = Field(default="runs", min_length=1)
    """Folder in which run folders are made."""
    compare: CompareSection = CompareSection()

    @model_validator(mode="after")
    def _four_bits_fit_task(self) -> Recipe:
        if self.model.load_in_4bit and self.data.task == "image-classification":
            raise ValueError(
                "model.load_in_4bit is for models of texts, got task image-classification"
            )
        return self

    @model_validator(mode="after")
    def _metric_fits_task(self) -> Recipe:
        if self.target is None:
            return self
        fits = {"loss", "perplexity"} if self.data.task == "causal-lm" else {"loss", "accuracy"}
        if self.target.metric not in fits:
            raise ValueError(
                f"target.metric of {self.data.task} must be {' or '.join(sorted(fits))}, "
                f"got {self.target.metric!r}"
            )
        if not self.data.held_out:
            raise ValueError("target is watched on held-out rows; set data.held_out above 0, got 0")
        return self

    @property
    def fleet_seed(self) -> int:
        """The seed that draws the devices."""
        return self.seed if self.fleet.seed is None else self.fleet.seed

    @property
    def label(self) -> str:
        """The run's name, or the method's."""
        return self.name or self.method.name.rpartition(":")[2]

    def plain(self) -> dict[str, Any]:
        """Return the recipe in plain values, as it is saved with the run."""
        values: dict[str, Any] = json.loads(self.model_dump_json())
        return values

    def digest(self) -> str:
        """Return a hash of all that decides a run's numbers, but for how many rounds it goes on."""
        return hashlib.sha256(json.dumps(self.hashed(), sort_keys=True).encode()).hexdigest()

    def hashed(self) -> dict[str, Any]:
        """Return the plain values that decide a run's numbers."""
        values = {key: value for key, value in self.plain().items() if key not in _UNHASHED}
        if self.limits == LimitsSection():
            del values["limits"]  # a recipe without caps is the one it was before there were any
        if self.fleet.availability == 1.0:
            del values["fleet"]["availability"]  # likewise
        del values["train"]["rounds"]  # a run may be given more
        del values["model"]["stage"]  # the way a base comes by does not change it
        return values
