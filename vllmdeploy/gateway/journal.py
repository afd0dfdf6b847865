"""The gateway's own log: one JSON object a line, which also makes control characters harmless."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import cast

LOG = logging.getLogger("vllmdeploy.gateway")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(cast("dict[str, object]", getattr(record, "fields", {})))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def say(event: str, **fields: object) -> None:
    LOG.info(event, extra={"fields": fields})


def warn(event: str, **fields: object) -> None:
    LOG.warning(event, extra={"fields": fields})


def bug(event: str, error: BaseException) -> None:
    LOG.error(event, exc_info=error)


def to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
