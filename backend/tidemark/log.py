"""Logging: one event a line, text for a terminal, JSON for machines. Three levels; ERROR means somebody should look."""

from __future__ import annotations

import logging
from typing import Any, BinaryIO, Final

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from .settings import LogFormat, LogLevel

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FIRST: Final = ("timestamp", "level", "event")
_encode = msgspec.json.Encoder(enc_hook=repr).encode


def configure(level: LogLevel, form: LogFormat, out: BinaryIO, *, terminal: bool) -> None:
    """Send everything, the libraries' own records included, to `out`; `auto` is text when it is a terminal."""
    as_text = form == "text" or (form == "auto" and terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if as_text else "iso", utc=not as_text),
    ]
    final: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=0), _to_bytes]
        if as_text
        else [structlog.processors.format_exc_info, _to_json]
    )
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    # What libraries log is ours to see when something is wrong, and in the same form.
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(_LEVELS[level], logging.WARNING))


def _to_json(_logger: Any, _method: str, event: EventDict) -> bytes:
    first = {name: event.pop(name) for name in _FIRST if name in event}
    return _encode({**first, **event})


def _to_bytes(_logger: Any, _method: str, event: str | EventDict) -> bytes:
    return str(event).encode(errors="backslashreplace")


class _Forward(logging.Handler):
    """Hands a library's record to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(logging.ERROR, record.levelno)
        structlog.get_logger().log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
