"""What operators asked of a server and which devices enrolled, a line each, in files that rotate.

STATE/audit.jsonl    who asked for what, from where, and what came of it; 20 older files are kept
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

AUDIT = "audit.jsonl"
LOG_BYTES, _KEPT = 5 << 20, 20


class Audit:
    """Writes lines that stay."""

    def __init__(self, state: Path) -> None:
        """Write to a server's state folder."""
        self._log = logging.Logger("airtune.audit", logging.INFO)
        self._log.addHandler(
            RotatingFileHandler(
                state / AUDIT, maxBytes=LOG_BYTES, backupCount=_KEPT, encoding="utf-8", delay=True
            )
        )

    def note(self, call: str, *, of: str, peer: str, **what: Any) -> None:
        """Write one line.

        Args:
            call: what was asked for.
            of: who asked.
            peer: from where.
            what: the rest.
        """
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        self._log.info(json.dumps({"at": stamp, "operator": of, "from": peer, "call": call} | what))

    def close(self) -> None:
        """Close the file."""
        for handler in self._log.handlers:
            handler.close()
