"""Where the shipped base model lies, and the names of the shipped data."""

from __future__ import annotations

from pathlib import Path
from typing import Final

EMBEDDED_MODEL: Final = Path(__file__).resolve().parent.parent / "assets" / "model"
"""Folder of the small Llama made by `scripts/train_base.py`; transformers loads it as it is."""

EMBEDDED_VISION: Final = EMBEDDED_MODEL.with_name("vision")
"""Folder of the small vision transformer made by `scripts/train_vision.py`."""

ARITHMETIC: Final = "embedded:arithmetic"
"""Word problems with worked steps (causal-lm); columns question, answer, topic."""

TOPICS: Final = "embedded:topics"
"""Short texts on eight topics (classification); columns text, label."""

SHAPES: Final = "embedded:shapes"
"""Small coloured shapes and textures of ten classes (image-classification)."""

EMBEDDED_SOURCES: Final = (ARITHMETIC, TOPICS, SHAPES)
EMBEDDED_PREFIX: Final = "embedded:"
