"""Two devices edit the same rows offline and come to the same state: run by `make demo`, nothing stays behind.

Everything a device does here is a real `tide` of its own; what you see typed is what was run.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import jwt
from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from vega_datasets import local_data

AIRPORTS = Path(local_data.airports.filepath)
SCHEMA = Path(__file__).with_name("airports") / "schema.yaml"
SECRET = secrets.token_hex(32)
SCOPE = "workspace:demo"
READY_WITHIN = 30.0
STYLES = {"laptop": "cyan", "phone": "magenta"}
OFFLINE = 3

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class Unequal(Exception):
    """The demo did not show what it promises."""


def program(name: str) -> str:
    """A command that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def token(user: str, role: str | None = None) -> str:
    """What `tidemark token --user USER [--role ROLE]` writes."""
    claims = {"sub": user, "exp": int(time.time()) + 3600} | ({"role": role} if role else {})
    return jwt.encode(claims, SECRET, algorithm="HS256")


class Service:
    """A throw-away `tidemark serve` with SQLite on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        command = [program("tidemark"), "serve", "--schema", str(SCHEMA), "--migrate"]
        command += [
            "--database",
            f"sqlite:///{self.folder / 'demo.db'}",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        log = self.folder / "service.log"
        with log.open("ab") as out:
            env = os.environ | {"TIDEMARK_JWT_SECRET": SECRET}
            self._process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=out, stderr=out)
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health/ready", timeout=2, trust_env=False).is_success:
                    return
            except httpx2.HTTPError:
                time.sleep(0.05)
        raise Unequal(f"the service did not start:\n{log.read_text()}")

    def stop(self) -> None:
        """Stop it, as Ctrl-C would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)
            self._process = None

    def make_workspace(self, *users: str) -> None:
        """What an operator does: the first member makes the scope."""
        headers = {"Authorization": f"Bearer {token('operator', 'admin')}"}
        with httpx2.Client(base_url=self.url, headers=headers, trust_env=False) as admin:
            for user in users:
                admin.put(f"/sync/scopes/{SCOPE}/members/{user}", json={"role": "editor"}).raise_for_status()


class Device(NamedTuple):
    """One store of one user."""

    name: str
    user: str
    folder: Path

    def run(self, *command: str, wanted: int = 0) -> str:
        """Run `tide`, and give what it said; any other exit code than `wanted` ends the demo."""
        done = subprocess.run(
            [program("tide"), "--store", self.folder.name, *command],
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            env=os.environ | {"NO_PROXY": "127.0.0.1", "COLUMNS": "100"},
            check=False,
        )
        if done.returncode != wanted:
            raise Unequal(f"{self.name}: tide {shlex.join(command)} ended with {done.returncode}\n{done.stderr}")
        return (done.stdout + done.stderr).strip()

    def show(self, *command: str, wanted: int = 0) -> None:
        """Run `tide` and print the command and what it said."""
        said = self.run(*command, wanted=wanted)
        console.print(f"[{STYLES[self.name]}]{self.name:>6} $[/] [bold]tide {escape(shlex.join(command))}[/]")
        for line in said.splitlines():
            console.print(f"         {line}", style="dim", markup=False, soft_wrap=True)

    def json(self, *command: str) -> Any:
        """What `tide … --json` answers."""
        return json.loads(self.run(*command, "--json"))


class Round(NamedTuple):
    """What both do while they cannot see each other, in this order, and who comes back first.

    `away`: the service itself is stopped meanwhile.
    """

    title: str
    edits: Sequence[tuple[str, Sequence[str]]]
    first: str
    rows: Sequence[str]
    away: bool


ROUNDS = (
    Round(
        "The service is away; both write. Then the laptop comes back first",
        (
            ("laptop", ("patch", "airports", "JFK", "name=Idlewild")),
            ("phone", ("patch", "airports", "JFK", "name=Kennedy Airport")),
            ("laptop", ("patch", "airports", "LAX", "city=L.A.", "notes/runways=4")),
            ("phone", ("patch", "airports", "LAX", "state=California", "notes/lounge=true")),
            ("phone", ("rm", "airports", "SFO")),
            ("laptop", ("patch", "airports", "SFO", "name=Frisco")),
        ),
        "laptop",
        ("JFK", "LAX", "SFO"),
        away=True,
    ),
    Round(
        "Both write again, unseen by each other. Now the phone comes back first",
        (
            ("phone", ("patch", "airports", "ORD", "name=Windy City")),
            ("laptop", ("patch", "airports", "ORD", "name=Orchard Field")),
            ("phone", ("patch", "airports", "BOS", "name=Logan")),
            ("laptop", ("patch", "airports", "BOS", "city=Beantown")),
            ("laptop", ("patch", "airports", "SEA", "name=Sea-Tac")),
            ("phone", ("rm", "airports", "SEA")),
        ),
        "phone",
        ("ORD", "BOS", "SEA"),
        away=False,
    ),
)


def together(*work: Any) -> list[Any]:
    """Run calls at the same time."""
    with ThreadPoolExecutor() as pool:
        return [future.result() for future in [pool.submit(one) for one in work]]


def play(service: Service, devices: dict[str, Device], game: Round) -> None:
    """One round: offline edits, sync in the round's order, proof of equality."""
    console.print()
    console.print(Rule(f"[bold]{game.title}", align="left"))
    if game.away:
        service.stop()
    for name, command in game.edits:
        devices[name].show(*command)
    if game.away:
        devices[game.first].show("sync", wanted=OFFLINE)
        service.start()
        console.print("[bold]The service is back.[/]")
    second = next(name for name in devices if name != game.first)
    for name in (game.first, second, game.first):
        devices[name].show("sync")
    console.print(
        "\n[bold]Who won, and what was overwritten[/]: of two writes of one field the later wins, different fields both"
        " survive,\nand a delete beats every edit, even a later one."
    )
    for row in game.rows:
        devices[second].show("why", "airports", row)
    prove(devices)


def prove(devices: dict[str, Device]) -> None:
    """Both hold the same rows: by digest against the server, and so against each other."""
    proofs = together(*(lambda device=device: device.json("verify") for device in devices.values()))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("device", "version", "digest", ""):
        table.add_column(column)
    found = [next(check for check in proof if check["scope"] == SCOPE) for proof in proofs]
    for name, check in zip(devices, found, strict=True):
        said = "[green]equal to the server's[/]" if check["ours"] == check["theirs"] else "[red]NOT the server's[/]"
        table.add_row(f"[{STYLES[name]}]{name}[/]", str(check["version"]), check["ours"], said)
    console.print()
    console.print(table)
    if len({(check["version"], check["ours"], check["theirs"]) for check in found}) != 1:
        raise Unequal("the devices differ")
    console.print("[bold green]Both devices hold the same rows.[/]")


def demo(folder: Path, service: Service) -> None:
    """All of it, in a folder that goes away afterwards."""
    devices = {
        "laptop": Device("laptop", "ada", folder / "laptop"),
        "phone": Device("phone", "ben", folder / "phone"),
    }
    console.print(Rule("[bold]A service, a workspace, two devices", align="left"))
    service.start()
    service.make_workspace(*(device.user for device in devices.values()))
    console.print(f"The service listens on {service.url}, with SQLite. ada and ben may edit {SCOPE}.")
    for device in devices.values():
        (folder / f"{device.user}.token").write_text(token(device.user))
    together(
        *(
            lambda device=device: device.run("init", service.url, "--token-file", str(folder / f"{device.user}.token"))
            for device in devices.values()
        )
    )
    shutil.copy(AIRPORTS, folder / "airports.csv")
    devices["laptop"].show("import", "airports", "airports.csv", "--scope", SCOPE)
    devices["laptop"].show("sync")
    devices["phone"].show("pull")
    devices["phone"].show("ls", "airports", "--where", "city=New York")
    for game in ROUNDS:
        play(service, devices, game)
    laptop, phone = together(*(lambda device=device: device.json("ls", "airports") for device in devices.values()))
    if laptop != phone:
        raise Unequal("the digests are equal, but the rows are not")


def main() -> int:
    """Run the demo; the exit code is 0 only if everything came out equal."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidemark-demo-") as name:
        service = Service(Path(name))
        try:
            demo(Path(name), service)
        except Unequal as fault:
            console.print(f"[bold red]The demo failed:[/] {escape(str(fault))}")
            return 1
        except KeyboardInterrupt:
            console.print("Stopped.")
            return 130
        finally:
            service.stop()
    console.print(f"[dim]{time.monotonic() - began:.0f} s[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
