"""`python -m bench.probe PORT SECONDS [TOKEN]`: how long small requests take, from a process that does nothing else.

Writes the times in ms, sorted, to standard output, one JSON list for each kind: GET /sync/time and, with a token, a
pull of nothing; without one, GET / alone.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from http.client import HTTPResponse

from .rows import Source

PAUSE = 0.003
"""Seconds between two requests: a person's neighbour, not a load."""


def main(port: int, seconds: float, token: str) -> None:
    peer = socket.create_connection(("127.0.0.1", port))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    pull = Source(19).pull()
    requests = [f"GET {'/sync/time' if token else '/'} HTTP/1.1\r\n{head}\r\n".encode()]
    if token:
        requests.append(f"POST /sync/pull HTTP/1.1\r\n{head}Content-Length: {len(pull)}\r\n\r\n".encode() + pull)
    times: list[list[float]] = [[] for _ in requests]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for request, mine in zip(requests, times, strict=True):
            time.sleep(PAUSE)
            began = time.perf_counter()
            peer.sendall(request)
            answer = HTTPResponse(peer)
            answer.begin()
            answer.read()
            mine.append((time.perf_counter() - began) * 1_000)
            assert answer.status == 200, answer.status
    for mine in times:
        print(json.dumps(sorted(mine)))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
