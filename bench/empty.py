"""An empty JSON post on the same web server with the same settings: the limit of one request."""

from __future__ import annotations

import sys

import uvicorn
from litestar import Litestar, post


@post("/", status_code=200)
async def empty(data: dict[str, int]) -> dict[str, int]:
    """Take an object, give an object."""
    return data


if __name__ == "__main__":
    uvicorn.run(Litestar([empty], openapi_config=None), port=int(sys.argv[1]), access_log=False, log_level="warning")
