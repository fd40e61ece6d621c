"""Keeping transformers' own reports and progress bars off the screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.utils import logging as transformers_logging


@contextmanager
def off_screen() -> Iterator[None]:
    """Silence transformers while the block runs; errors are raised all the same.

    Its reader of GGUF files has a bar of its own, which no switch reaches; it is given the common one.
    """
    level, own = transformers_logging.get_verbosity(), gguf_reader.tqdm
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gguf_reader.tqdm = transformers_logging.tqdm
    try:
        yield
    finally:
        gguf_reader.tqdm = own
        transformers_logging.set_verbosity(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()
