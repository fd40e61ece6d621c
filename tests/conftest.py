"""What holds for every test."""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine fails no property
settings.load_profile("any machine")
