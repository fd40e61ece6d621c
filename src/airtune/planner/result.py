"""What a plan says: a row a device, and what the run takes in all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Money:
    """What a run costs at the recipe's tariff, in its currency."""

    electricity: float
    """Of the devices; the server's is not in it."""
    data: float
    """Of the rounds' bytes, both ways, and of fetching the base once."""
    currency: str

    @property
    def total(self) -> float:
        """Both together."""
        return self.electricity + self.data


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What one device would do; seconds, bytes and joules a round, medians over sampled rounds."""

    name: str
    kind: str
    pruned: float
    cut: int
    """Blocks on the device in the last sampled round; 0 = the whole model."""
    codec: str
    """Of what crosses its cut; empty where nothing does."""
    rank: int
    share: float
    """Of its link."""
    peak_bytes: float
    memory_bytes: float
    fits: bool
    feasible: str
    """Which choices its memory leaves."""
    download_s: float
    compute_s: float
    upload_s: float
    finish_s: float
    upload_bytes: float
    download_bytes: float
    energy_j: float
    local_steps: float = float("nan")
    """NaN where it took no part."""
    stage_bytes: float = 0.0
    """Of the base model, fetched from the server once; 0 where it hands none out."""
    stage_s: float = 0.0
    """With the downlink to itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would cost."""

    recipe: str
    method: str
    model: str
    parameters: int
    devices: tuple[DevicePlan, ...]
    rounds: int
    rounds_source: str
    """Where the number of rounds came from."""
    round_s: float
    total_s: float
    total_upload_bytes: float
    total_download_bytes: float
    total_energy_j: float
    """Of the devices; the server's is not in it."""
    total_flops: float
    """Of the training, whoever computes it; evaluation is not in it."""
    straggler: str
    """The device that most often finishes last, and why."""
    assumptions: tuple[str, ...]
    data: tuple[str, ...] = ()
    """What would become of the data's rows: left out, cut, in both parts."""
    warnings: tuple[str, ...] = ()
    """What keeps a run from going as planned: a server too small, devices that cannot train."""
    money: Money | None = None
    """None = the recipe states no tariff."""
    quantile: float | None = None
    """Of the rounds' times, in (0, 1); None = the median alone was asked for."""
    round_quantile_s: float | None = None
    """The time within which that part of the rounds ends."""

    def as_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
