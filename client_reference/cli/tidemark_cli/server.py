"""The service over HTTP: one method for each request, and one place where its refusals get their meaning (SPEC 7).

Only a verdict of the service itself is final. Whatever else answers in its place, a proxy's page or nothing at all,
is temporary and costs no change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx2
import msgspec
from msgspec import Struct

from tidemark_protocol import clock
from tidemark_protocol.errors import REQUEST_CODES, Remedy
from tidemark_protocol.messages import PullRequest, PushResponse, Run, Trailer, encode
from tidemark_protocol.outbox import Pending, wire

from .errors import LoginNeeded, Temporary, TideError, TooMuch, Upgrade
from .values import millis_of_time

PAGE: Final = 2_000
"""Changes in one line of a streamed pull: each line is one transaction."""
_TIMEOUT: Final = httpx2.Timeout(60, connect=10)

_answer = msgspec.json.Decoder(PushResponse)
_run = msgspec.json.Decoder(Run)
_trailer = msgspec.json.Decoder(Trailer)
_time = msgspec.json.Decoder(dict[str, Any])


class Time(Struct, frozen=True):
    """The server's time: `offset` from this device's, known to within `error`; both in ms."""

    clock: str
    offset: int
    error: int
    now: int


class Problem(Struct, frozen=True):
    """Problem details (RFC 9457) with the stable code of SPEC 7."""

    code: str
    detail: str = ""
    title: str = ""


class Server:
    """The service at `url`; `token` is asked for each request's token, `now` for the device's own time (ms)."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        now: Callable[[], int],
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        def authorize(request: httpx2.Request) -> httpx2.Request:
            request.headers["Authorization"] = f"Bearer {token()}"
            return request

        self._http = httpx2.Client(
            base_url=url.rstrip("/") + "/",
            headers={"User-Agent": "tide"},
            auth=authorize,
            timeout=_TIMEOUT,
            transport=transport,
        )
        self._now = now

    def close(self) -> None:
        self._http.close()

    def time(self) -> Time:
        """`GET /sync/time`, and what it says about this device's clock."""
        sent = self._now()
        response = self._request("GET", "sync/time")
        received = self._now()
        try:
            answer = _time.decode(response.content)
            reading, server = str(answer["clock"]), millis_of_time(answer["time"])
        except (KeyError, TypeError, ValueError, msgspec.MsgspecError) as fault:
            raise _stranger(response) from fault
        if not clock.is_reading(reading):
            raise _stranger(response)
        return Time(reading, server - (sent + received) // 2, (received - sent + 1) // 2, server)

    def schema(self, etag: str | None) -> tuple[bytes, str | None] | None:
        """The declaration and its ETag; None if it is still the one with `etag`."""
        response = self._request("GET", "sync/schema", headers={"If-None-Match": etag} if etag else {})
        if response.status_code == httpx2.codes.NOT_MODIFIED:
            return None
        return response.content, response.headers.get("etag")

    def push(self, client: str, batch: list[Pending]) -> PushResponse:
        """Send mutations of one schema number."""
        body = {"client": client, "schema": batch[0].schema, "mutations": [wire(mutation) for mutation in batch]}
        response = self._request("POST", "sync/push", content=encode(body), headers=_JSON)
        try:
            return _answer.decode(response.content)
        except msgspec.MsgspecError as fault:
            raise _stranger(response) from fault

    def pull(self, client: str, schema: int, watermark: dict[str, str]) -> Iterator[Run | Trailer]:
        """Runs as they come, and the trailer last; Temporary when the answer was cut off before it."""
        request = PullRequest(client, schema, watermark, limit=PAGE)
        headers = _JSON | {"Accept": "application/x-ndjson"}
        with (
            _translated(),
            self._http.stream("POST", "sync/pull", content=encode(request), headers=headers) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                response.read()
            _check(response)
            for line in _lines(response):
                item = _run_or_trailer(line, response)
                yield item
                if isinstance(item, Trailer):
                    return
        raise Temporary("The service's answer was cut off. What had come is kept; pull again.")

    def events(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A page of the journal: `{"events": […], "next": …}`."""
        given = {name: value for name, value in params.items() if value is not None}
        response = self._request("GET", "sync/events", params=given)
        try:
            return _time.decode(response.content)
        except msgspec.MsgspecError as fault:
            raise _stranger(response) from fault

    def row_events(self, entity: str, row: str, scope: str | None) -> Iterator[dict[str, Any]]:
        """All that the journal tells of a row, in one scope or in all that may be read, newest first."""
        cursor: str | None = None
        while True:
            page = self.events({"entity": entity, "row": row, "scope": scope, "limit": 1_000, "before": cursor})
            yield from page["events"]
            cursor = page.get("next")
            if cursor is None:
                return

    def _request(self, method: str, path: str, **rest: Any) -> httpx2.Response:
        with _translated():
            response = self._http.request(method, path, **rest)
        _check(response)
        return response


_JSON: Final = {"Content-Type": "application/json"}


@contextmanager
def _translated() -> Iterator[None]:
    """What the network throws, as ours."""
    try:
        yield
    except httpx2.InvalidURL as fault:
        raise TideError(f"That is no URL: {fault}") from fault
    except httpx2.UnsupportedProtocol as fault:
        raise TideError("The service's URL begins with http:// or https://") from fault
    except (httpx2.HTTPError, httpx2.StreamError) as fault:
        raise Temporary(f"The service cannot be reached ({str(fault) or type(fault).__name__}).") from fault


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    """Lines end with a newline and nothing else: JSON text may hold other characters that look like line ends."""
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
    if rest:
        yield rest


def _run_or_trailer(line: bytes, response: httpx2.Response) -> Run | Trailer:
    try:
        return _run.decode(line)
    except msgspec.MsgspecError:
        try:
            return _trailer.decode(line)
        except msgspec.MsgspecError as fault:
            raise _stranger(response) from fault


def _stranger(response: httpx2.Response) -> Temporary:
    kind = response.headers.get("content-type", "nothing")
    return Temporary(f"What answered ({response.status_code}, {kind}) is not the service. Everything is kept.")


def _check(response: httpx2.Response) -> None:
    """Raise what a refused request means."""
    if response.is_success or response.status_code == httpx2.codes.NOT_MODIFIED:
        return
    problem = _problem(response)
    status = response.status_code
    if problem is None:
        if status in (400, 413):
            raise TooMuch(str(status), f"Something on the way refused the request ({status}).", final=False)
        raise _stranger(response)
    said = problem.detail or problem.title or problem.code
    if status in (400, 413):
        raise TooMuch(problem.code, said, final=True)
    _, remedy = REQUEST_CODES.get(problem.code, (status, Remedy.RETRY))
    match remedy:
        case Remedy.AUTHENTICATE:
            raise LoginNeeded(f"The token is not accepted ({said}). Run: tide login")
        case Remedy.UPGRADE:
            raise Upgrade(f"The service speaks another schema number ({said}). Everything is kept. Run: tide schema")
        case Remedy.RETRY:
            raise Temporary(f"The service cannot answer now ({said}).", retry_after=_retry_after(response))
        case _:
            raise TideError(f"The service refused the request ({problem.code}): {said}. Everything is kept.")


def _problem(response: httpx2.Response) -> Problem | None:
    """The service's own refusal, or None if something else answered."""
    if response.headers.get("content-type", "").partition(";")[0] != "application/problem+json":
        return None
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except msgspec.MsgspecError:
        return None


def _retry_after(response: httpx2.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
