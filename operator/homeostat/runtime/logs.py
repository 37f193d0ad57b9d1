# SPDX-License-Identifier: Apache-2.0
"""Logs as text or JSON lines, each with the key and the number of the reconcile it belongs to."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from homeostat.runtime.controller import current_id, current_key


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current_key.get():
            line |= {"key": current_key.get(), "reconcile": str(current_id.get())}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """time level key message."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        key = f" {current_key.get()}#{current_id.get()}" if current_key.get() else ""
        text = f"{time} {record.levelname:<7}{key} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure(style: str, level: str) -> None:
    """Send logs to stderr. `style` is text or json."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("kopf", "asyncio", "aiohttp", "kubernetes"):
        logging.getLogger(noisy).setLevel(max(logging.getLogger().level, logging.WARNING))
