"""What the knobs cost this model on these data: short runs, or forward passes."""

from airtune.calibrate.measured import from_header, load, store
from airtune.calibrate.sensitivity import SensitivityProbe, measure_sensitivity, scored_state
from airtune.calibrate.short import CalibrationSetting, chosen_devices
from airtune.calibrate.tables import (
    measure_codecs,
    measure_cut,
    measure_pruning,
    measure_ranks,
    measure_steps,
    measure_uploads,
)

__all__ = [
    "CalibrationSetting",
    "SensitivityProbe",
    "chosen_devices",
    "from_header",
    "load",
    "measure_codecs",
    "measure_cut",
    "measure_pruning",
    "measure_ranks",
    "measure_sensitivity",
    "measure_steps",
    "measure_uploads",
    "scored_state",
    "store",
]
