"""What pruning or compression costs this model on these data: measured by short federations."""

from airtune.calibrate.compression import calibrate_codecs
from airtune.calibrate.measured import Measured, from_document, load, store
from airtune.calibrate.pruning import calibrate_pruning
from airtune.calibrate.short import Setting

__all__ = [
    "Measured",
    "Setting",
    "calibrate_codecs",
    "calibrate_pruning",
    "from_document",
    "load",
    "store",
]
