"""Being together: room."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click
import msgspec
from msgspec import UNSET
from rich.console import Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from tidemark_cli.app import App, json_option, pass_app
from tidemark_cli.errors import TideError
from tidemark_cli.render import local_time, table
from tidemark_cli.room import Lines, View, Visitor
from tidemark_cli.values import plural, to_text
from tidemark_protocol.client_rooms import Gathered, Heard
from tidemark_protocol.errors import RequestError
from tidemark_protocol.messages import Broadcasted, Member, Presence, encode
from tidemark_protocol.rooms import scope_of


@click.command()
@click.argument("name", metavar="ROOM")
@click.option("--state", metavar="JSON", default="null", help="What is shown of you.")
@click.option("--say", type=(str, str), multiple=True, metavar="EVENT PAYLOAD", help="Broadcast this once you are in.")
@click.option("--seconds", type=float, help="Leave after so many seconds.")
@json_option
@pass_app
def room(
    app: App, name: str, state: str, say: tuple[tuple[str, str], ...], seconds: float | None, as_json: bool
) -> None:
    """Join a room: see who is there, what they show and say. A line typed, EVENT PAYLOAD, is said to the others.

    A room is a scope that you may read, or a name below one: workspace:7, workspace:7/document:12. A payload is JSON,
    or else text. Ctrl-C leaves, and so does Ctrl-D. With --json, and where no terminal reads, each line that comes is a
    frame of the protocol.
    """
    shown = _checked(name, state)
    ends = None if seconds is None else time.monotonic() + seconds
    lines = Lines(sys.stdin.fileno())
    typing = sys.stdin.isatty()

    def over() -> bool:
        return (typing and lines.ended.is_set()) or (ends is not None and time.monotonic() >= ends)

    def visit(view: View, typed: Callable[[], list[str]]) -> None:
        Visitor(app.peer, name, shown, view, first=say, lines=typed, say=app.say, sleep=time.sleep, until=over).run()

    try:
        if as_json or not app.out.is_terminal:
            visit(Frames(), lines)
        else:
            with Live(console=app.out, auto_refresh=False, transient=True) as live:
                visit(Screen(app, name, live), Typing(lines, live) if typing else lines)
    except KeyboardInterrupt:
        app.say(f"Left {name}.")


def _checked(name: str, state: str) -> Any:
    """The state, if both can be."""
    try:
        scope_of(name)
    except RequestError as fault:
        raise TideError(f"{name!r} is no room: {fault.detail}.") from fault
    try:
        return msgspec.json.decode(state)
    except (msgspec.DecodeError, UnicodeError) as fault:
        raise TideError(f"The state is not JSON: {fault}.") from fault


class Frames:
    """One frame in a line, for scripts."""

    def gathered(self, change: Gathered, _members: dict[str, Member], _session: str) -> None:
        frame = Presence(
            change.room,
            UNSET if change.members is None else change.members,
            change.joined or UNSET,
            change.changed or UNSET,
            change.left or UNSET,
        )
        click.echo(encode(frame))

    def heard(self, heard: Heard) -> None:
        sender = {"session": heard.session, "user": heard.user}
        click.echo(encode(Broadcasted(heard.room, sender, heard.event, heard.payload)))

    def said(self, event: str, payload: Any) -> None:
        """It is no frame that came."""


class Screen:
    """Who is there, as a table that stays below what is said."""

    def __init__(self, app: App, name: str, live: Live) -> None:
        self._app = app
        self._name = name
        self._live = live
        self._known: dict[str, Member] = {}

    def gathered(self, change: Gathered, members: dict[str, Member], session: str) -> None:
        if change.members is None:
            for who in change.joined.values():
                self._tell(who["user"], "joined", style="green")
            for gone in change.left:
                if gone in self._known:
                    self._tell(self._known[gone]["user"], "left", style="red")
        self._known = members
        self._live.update(self._picture(session), refresh=True)

    def heard(self, heard: Heard) -> None:
        self._tell(heard.user, heard.event, to_text(heard.payload), style="bold")

    def said(self, event: str, payload: Any) -> None:
        self._tell("you", event, to_text(payload), style="bold")

    def _tell(self, who: str, what: str, more: str = "", *, style: str) -> None:
        time_of_day = local_time(self._app.peer.now())[11:]
        self._app.out.print(Text.assemble((time_of_day, "dim"), f" {who} ", (what, style), f" {more}"), soft_wrap=True)

    def _picture(self, session: str) -> Group:
        rows = [
            (f"{who['user']} (you)" if name == session else who["user"], name, who["state"])
            for name, who in sorted(self._known.items(), key=lambda item: (item[1]["user"], item[0]))
        ]
        title = f"{self._name}: {plural(len(rows), 'session')}"
        return Group(table(("who", "session", "shows"), rows, title=title), Text("> "))


class Typing:
    """Lines from the terminal below a table: each has moved the cursor one line down from where it is drawn next."""

    def __init__(self, lines: Lines, live: Live) -> None:
        self._lines = lines
        self._live = live

    def __call__(self) -> list[str]:
        lines = self._lines()
        if lines:
            self._live.console.control(Control((ControlType.CURSOR_UP, len(lines))))
            self._live.refresh()
        return lines


COMMANDS = (room,)
