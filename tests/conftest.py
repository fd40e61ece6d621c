"""What holds for every test."""

import os

# One thread a process: the tests run in as many processes as there are cores, and start more.
# It is set before torch is imported, and processes that a test starts inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine fails no property
settings.load_profile("any machine")
