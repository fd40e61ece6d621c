"""What pruning or compression costs this model on these data: short runs, or forward passes."""

from airtune.calibrate.compression import calibrate_codecs
from airtune.calibrate.measured import Measured, from_document, load, store
from airtune.calibrate.pruning import calibrate_pruning
from airtune.calibrate.sensitivity import SensitivityProbe, measure_sensitivity
from airtune.calibrate.short import Setting, chosen_devices

__all__ = [
    "Measured",
    "SensitivityProbe",
    "Setting",
    "calibrate_codecs",
    "calibrate_pruning",
    "chosen_devices",
    "from_document",
    "load",
    "measure_sensitivity",
    "store",
]
