"""Whether the hub of models and data sets answers, found out before its client is sent for a file.

Where nothing answers, that client tries every file several times, which takes half a minute a file.
"""

from __future__ import annotations

from huggingface_hub import constants, get_session, is_offline_mode
from huggingface_hub.utils import httpx

_PATIENCE_S = 5.0
"""How long the hub has to answer."""


def is_out_of_reach() -> bool:
    """Say whether the hub does not answer; with HF_HUB_OFFLINE it is not asked, and this is False."""
    if is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except httpx.TransportError:
        return True
    return False
