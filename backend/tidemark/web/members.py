"""`/sync/scopes/{scope}/members[/{user}]` (SPEC 7).

Scope and user are one path segment each, percent-encoded as a URL wants it: a scope that holds `%7C` itself arrives as
`%257C`. They are read from the raw path, since a user may hold a slash.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from tidemark.sync.engine import Engine
from tidemark_protocol import messages
from tidemark_protocol.errors import RequestError

from .answer import Answer, as_json
from .call import Call
from .problems import problem
from .routes import Endpoint, Route

_ROOT: Final = "/sync/scopes"
MEMBERS: Final = _ROOT + "/{scope}/members"
MEMBER: Final = MEMBERS + "/{user}"


class Membership(msgspec.Struct):
    """The body of a PUT."""

    role: str


def members_route(engine: Engine) -> Route:
    max_body = engine.settings.max_body

    async def all_members(call: Call, scope: str, _user: str) -> Answer:
        return as_json({"scope": scope, "members": await engine.members(call.caller, scope)})

    async def put_member(call: Call, scope: str, user: str) -> Answer:
        body = messages.decode_json(await call.json_body(max_body))
        try:
            role = msgspec.convert(body, Membership).role
        except msgspec.ValidationError as fault:
            raise RequestError("malformed", str(fault)) from fault
        await engine.put_member(call.caller, scope, user, role)
        return as_json({"scope": scope, "user": user, "role": role})

    async def delete_member(call: Call, scope: str, user: str) -> Answer:
        await engine.delete_member(call.caller, scope, user)
        return Answer(b"", 204)

    of_scope = {"GET": all_members}
    of_user = {"PUT": put_member, "DELETE": delete_member}

    async def members(call: Call) -> Answer:
        scope, user = _parts(call)
        methods = of_scope if user is None else of_user
        call.path = MEMBERS if user is None else MEMBER
        endpoint = methods.get("GET" if call.method == "HEAD" else call.method)
        if endpoint is None:
            allowed = ", ".join(sorted(methods)).encode()
            return problem("method_not_allowed", f"not {call.method} here", headers=((b"allow", allowed),))
        return await endpoint(call, scope, user or "")

    every: dict[str, Endpoint] = dict.fromkeys(("GET", "PUT", "DELETE"), members)
    return Route(_ROOT, every, below=True)


def _parts(call: Call) -> tuple[str, str | None]:
    """Scope and user (None: all members), each decoded once."""
    raw: bytes = call.scope["raw_path"].partition(b"?")[0]
    segments = raw.partition(_ROOT.encode() + b"/")[2].removesuffix(b"/").split(b"/")
    if not segments[0] or len(segments) not in {2, 3} or segments[1] != b"members":
        raise RequestError("not_found", "there is nothing here")
    try:
        decoded = [unquote_to_bytes(segment).decode() for segment in segments]
    except UnicodeDecodeError as fault:
        raise RequestError("malformed", "a path is percent-encoded UTF-8") from fault
    return decoded[0], decoded[2] if len(decoded) == 3 else None
