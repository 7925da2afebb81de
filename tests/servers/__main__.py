"""A throw-away service for tests in other languages: `python -m tests.servers SCHEMA [NAME=VALUE …]`.

It writes one line of JSON, `{"url": …, "secret": …}`, when it answers, and ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from .service import TidemarkServer

SECRET = "a secret of tests, 32 bytes or more"


def main(schema: str, *settings: str) -> None:
    """Serve the declaration on SQLite, with these further settings, until nobody wants it any more."""
    env = dict(setting.split("=", 1) for setting in settings)
    with tempfile.TemporaryDirectory(prefix="tidemark-") as folder:
        server = TidemarkServer(schema, f"sqlite:///{folder}/tidemark.db", env=env, secret=SECRET, folder=Path(folder))
        with server:
            sys.stdout.write(json.dumps({"url": server.url, "secret": SECRET}) + "\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
