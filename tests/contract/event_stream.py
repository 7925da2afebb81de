"""A client of the stream as server-sent events (SPEC section 6): what it reads, it reads as `Stream` does."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from types import TracebackType
from typing import Any, Self

from tests.contract.client import SCHEMA, Device, Json
from tests.contract.stream import Stream

EVENTS = {"Accept": "text/event-stream", "Content-Type": "application/json"}


class EventStream(Stream):
    """The stream of one device by POST. It reads nothing before it is asked for a frame.

    `narrow` takes in little at a time; `close` holds the code and reason of the last event, once it came; `ended` tells
    that nothing more can come.
    """

    def __init__(self, device: Device, watermark: dict[str, str] | None = None, **hello: Any) -> None:
        self.device = device
        self.frames: list[Json] = []
        self.comments = 0
        self.close: Json | None = None
        self.ended = False
        self._events: queue.Queue[Json | None] = queue.Queue()
        self._reader: threading.Thread | None = None
        narrow, origin = hello.pop("narrow", False), hello.pop("origin", None)
        host, port = device.service.address
        self._socket = socket.socket()
        if narrow:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self._socket.connect((host, port))
        http = HTTPConnection(host, port)
        http.sock = self._socket
        body = {"client": device.client, "schema": SCHEMA, "watermark": watermark or {}} | hello
        headers = EVENTS | device.headers | ({"Origin": origin} if origin else {})
        http.request("POST", "/sync/stream", json.dumps(body), headers)
        self.response = http.getresponse()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.hang_up()

    def __enter__(self) -> Self:
        return self

    def hang_up(self) -> None:
        """End the connection."""
        self._socket.close() if self._reader is None else self._socket.shutdown(socket.SHUT_RDWR)
        if self._reader is not None:
            self._reader.join()
            self._socket.close()

    def receive(self, seconds: float = 10) -> Json:
        """The next frame; TimeoutError if none comes, EOFError once the answer is over."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        try:
            frame = self._events.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if frame is None:
            self._events.put(None)
            raise EOFError
        self.frames.append(frame)
        if "clock" in frame:
            self.device.clock.advance(frame["clock"])
        return frame

    def close_code(self, seconds: float = 10) -> int | None:
        """The code of the close event, reading whatever comes before; None if the answer does not end with one."""
        try:
            for _ in self.incoming(seconds):
                pass
        except EOFError:
            return None if self.close is None else int(self.close["code"])
        return None

    def _read(self) -> None:
        try:
            for name, data in _events(self.response):
                if name == "comment":
                    self.comments += 1
                elif name == "close":
                    self.close = data
                else:
                    self._events.put(data)
        finally:
            self.ended = True
            self._events.put(None)


def _events(response: HTTPResponse) -> Iterator[tuple[str, Json]]:
    """Name and data of each event, as a browser's reader would give them; the rest of one that was cut off is lost."""
    name, data = "message", ""
    while True:
        try:
            line = response.readline().decode()
        except (OSError, HTTPException, ValueError):
            return
        if not line:
            return
        field, _, value = line.rstrip("\n").partition(":")
        if line.startswith(":"):
            yield "comment", {}
        elif field == "event":
            name = value.strip()
        elif field == "data":
            data += value
        elif data:
            yield name, json.loads(data)
            name, data = "message", ""
