"""Logging: one event a line, JSON for machines, text for people."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from tidemark import log
from tidemark.settings import LogFormat, LogLevel

LINE = log.RequestLine("POST", "/sync/push", 200, 1.5, "ada", 10, 20)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Logging belongs to the process: it is put back."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def written(level: LogLevel, form: LogFormat, *, terminal: bool = False) -> list[str]:
    """The lines of one event of each level, of a library's records, and of a request."""
    out = io.BytesIO()
    on_request = log.configure(level, form, out, terminal=terminal)
    logger = structlog.get_logger()
    logger.info("one", where="here")
    logger.warning("two")
    try:
        raise LookupError("lost")
    except LookupError:
        logger.exception("three")
    logging.getLogger("library").info("nobody wants to know")
    logging.getLogger("library").error("four %d", 4)
    on_request(LINE)
    return out.getvalue().decode().splitlines()


def test_machines_read_json() -> None:
    """Each line is an object that begins with time, level and event; a traceback is within its line."""
    events = [json.loads(line) for line in written("info", "auto")]
    assert [(event["level"], event["event"]) for event in events] == [
        ("info", "one"),
        ("warning", "two"),
        ("error", "three"),
        ("error", "four 4"),
        ("info", "request"),
    ]
    assert all(list(event)[:3] == ["timestamp", "level", "event"] for event in events)
    assert "LookupError: lost" in events[2]["exception"]
    assert events[3]["logger"] == "library"
    assert (
        events[4].items() >= {"method": "POST", "path": "/sync/push", "status": 200, "ms": 1.5, "user": "ada"}.items()
    )


@pytest.mark.parametrize(("form", "terminal"), [("text", False), ("auto", True)])
def test_people_read_text(form: LogFormat, terminal: bool) -> None:
    """On a terminal, or when asked for."""
    text = "\n".join(written("info", form, terminal=terminal))
    assert "{" not in text.split("\n")[0]
    for words in ("one", "two", "LookupError", "four 4", "/sync/push"):
        assert words in text


@pytest.mark.parametrize(("level", "count"), [("info", 5), ("warning", 3), ("error", 2)])
def test_levels_leave_out_what_is_below(level: LogLevel, count: int) -> None:
    """Three levels; a request's line is of the lowest."""
    assert len(written(level, "json")) == count
