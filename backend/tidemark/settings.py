"""Every setting of the service, read once from the environment (SPEC 7).

A setting `max_doc` is the variable `TIDEMARK_MAX_DOC`. Durations are held in milliseconds, sizes in bytes. Secrets may
be given by file (`TIDEMARK_JWT_SECRET_FILE`). `docs/settings.md` lists what stands here.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct, structs

PREFIX: Final = "TIDEMARK_"
MIN_SECRET: Final = 32
KEY_SETTINGS: Final = ("jwt_secret", "jwt_jwks_url", "jwt_public_key")
LogLevel = Literal["info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]

_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,12})(KiB|MiB|GiB)?")
_NUMBER = re.compile(r"[0-9]{1,12}")
_MILLIS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SECOND: Final = _MILLIS["s"]
_DAY: Final = _MILLIS["d"]
_KIB: Final = _BYTES["KiB"]
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by public key that a token may carry when the configuration lets it."""


class SettingsError(Exception):
    """The configuration cannot be used; `faults` names every reason."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class Kind(NamedTuple):
    """How a setting is written: a name for people, and both directions (`read` raises ValueError)."""

    name: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str


class About(NamedTuple):
    """What a setting is; `secret` ones may come from a file and are never shown."""

    kind: Kind
    text: str
    secret: bool = False


def read_duration(text: str) -> int:
    """Milliseconds of `20ms`, `10s`, `30m`, `12h` or `90d`."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration is written 20ms, 10s, 30m, 12h or 90d")
    return int(match[1]) * _MILLIS[match[2]]


def read_size(text: str) -> int:
    """Bytes of `512KiB`, `1MiB` or a plain number."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size is written 512KiB, 1MiB, or as a number of bytes")
    return int(match[1]) * _BYTES[match[2]]


def _read_number(text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError("a whole number is expected")
    return int(text)


def _read_list(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _one_of(*choices: str) -> Kind:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is expected")
        return text

    return Kind(" / ".join(choices), read)


TEXT: Final = Kind("text", str)
NUMBER: Final = Kind("number", _read_number)
DURATION: Final = Kind("duration", read_duration, lambda millis: f"{millis}ms")
SIZE: Final = Kind("size", read_size)
LIST: Final = Kind("list", _read_list, ",".join)


class Settings(Struct, frozen=True, kw_only=True):
    """One attribute for each `TIDEMARK_` setting."""

    database_url: Annotated[
        str,
        About(
            TEXT,
            "Where rows are kept: `sqlite:////path/to/file`, `postgresql://user:password@host/name`, or "
            "`mysql://user:password@host/name` for MySQL and MariaDB.",
            True,
        ),
    ] = "sqlite:///var/tidemark.db"
    schema: Annotated[str, About(TEXT, "The declaration's file.")] = "schema.yaml"
    migrations: Annotated[
        str | None, About(TEXT, "Folder of the declaration's revisions; `migrations` beside its file when not given.")
    ] = None
    rules: Annotated[str | None, About(TEXT, "Python module that registers rules which need code.")] = None

    host: Annotated[str, About(TEXT, "Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, About(NUMBER, "Port to listen on; 0 takes a free one.")] = 8000
    workers: Annotated[int, About(NUMBER, "Processes that serve; SQLite serves one.")] = 1
    origins: Annotated[
        tuple[str, ...],
        About(LIST, "Web origins, besides the service's own, whose pages may call and open streams; `*` for any."),
    ] = ()
    shutdown_timeout: Annotated[
        int, About(DURATION, "How long requests under way may take to end after a signal to stop.")
    ] = 10 * _SECOND

    jwt_secret: Annotated[str | None, About(TEXT, "Shared secret of HS256 tokens, 32 bytes at least.", True)] = None
    jwt_jwks_url: Annotated[str | None, About(TEXT, "Where the identity provider publishes its keys (JWKS).")] = None
    jwt_public_key: Annotated[
        str | None, About(TEXT, "Public key of tokens: PEM or JWK text, or the path of a file that holds it.", True)
    ] = None
    jwt_algorithms: Annotated[
        tuple[str, ...], About(LIST, "Algorithms accepted with public keys; each key takes only those of its type.")
    ] = ("RS256", "ES256", "EdDSA")
    jwt_audience: Annotated[str | None, About(TEXT, "`aud` that a token must have; ignored when not given.")] = None
    jwt_issuer: Annotated[str | None, About(TEXT, "`iss` that a token must have; ignored when not given.")] = None

    retention: Annotated[int, About(DURATION, "How long tombstones are kept: the longest a replica may be away.")] = (
        90 * _DAY
    )
    journal_retention: Annotated[int, About(DURATION, "How long the journal is kept.")] = 7 * _DAY
    housekeeping_interval: Annotated[int, About(DURATION, "How often what is past its retention is removed.")] = (
        60 * _SECOND
    )
    max_drift: Annotated[int, About(DURATION, "How far a client's clock may run ahead of the server's.")] = 60 * _SECOND
    max_mutations: Annotated[int, About(NUMBER, "Mutations in one push.")] = 1_000
    max_body: Annotated[int, About(SIZE, "Bytes in the body of one request.")] = 1024 * _KIB
    max_doc: Annotated[int, About(SIZE, "Bytes in one document.")] = 256 * _KIB
    cascade_limit: Annotated[int, About(NUMBER, "Rows that one delete may reach through references.")] = 10_000
    pull_buffer: Annotated[int, About(SIZE, "Bytes of changes in one page of a pull, a single larger one aside.")] = (
        8192 * _KIB
    )
    rate_limit: Annotated[int, About(NUMBER, "Requests a minute for each user and process; 0 for no limit.")] = 6_000

    wake: Annotated[
        str,
        About(
            TEXT,
            "How processes tell each other of commits, and share rooms: `auto` (PostgreSQL's own channel; MySQL and "
            "MariaDB have none and are polled), `polling` (rooms stay within a process), or a URL: `postgresql://` (a "
            "connection of its own, as PgBouncer asks for), `redis://`, `valkey://`, `rediss://` or `valkeys://` (both "
            "encrypted), `nats://` or `tls://` (NATS, encrypted).",
            True,
        ),
    ] = "auto"
    poll_interval: Annotated[
        int, About(DURATION, "How often heads are looked up in case a wake was lost (100 ms at most under `polling`).")
    ] = _SECOND
    capture_interval: Annotated[
        int | None,
        About(DURATION, "How often writes made in SQL are collected; 10ms on PostgreSQL, 50ms on SQLite, else 100ms."),
    ] = None
    stream_buffer: Annotated[int, About(SIZE, "Bytes held for one stream whose reader is slow.")] = 512 * _KIB
    hello_timeout: Annotated[int, About(DURATION, "How long a stream may take to say hello.")] = 10 * _SECOND
    heartbeat: Annotated[int, About(DURATION, "How often a stream is pinged; without an answer it is closed.")] = (
        25 * _SECOND
    )
    stall_timeout: Annotated[
        int, About(DURATION, "How long a stream's reader may take in nothing of what waits for it.")
    ] = 30 * _SECOND
    max_streams: Annotated[int, About(NUMBER, "Streams open in one process.")] = 10_000
    max_opening: Annotated[int, About(NUMBER, "Streams of one process that are let in at a time; others wait.")] = 50
    streams_per_user: Annotated[int, About(NUMBER, "Streams of one user in one process.")] = 100
    reconnect_spread: Annotated[
        int, About(DURATION, "Over how long clients are asked to spread their return, at most.")
    ] = 5 * _SECOND
    max_frame: Annotated[int, About(SIZE, "Bytes in one frame of a client.")] = 1024 * _KIB
    max_scopes: Annotated[int, About(NUMBER, "Scopes that one `hello` or `follow` may name.")] = 5_000
    frame_rate: Annotated[
        int, About(NUMBER, "Frames a second that one stream may send, and twice as many at once; 0 for no limit.")
    ] = 1_000

    rooms_per_stream: Annotated[int, About(NUMBER, "Rooms that one stream may be in.")] = 100
    room_members: Annotated[int, About(NUMBER, "Sessions in one room.")] = 1_000
    room_state: Annotated[int, About(SIZE, "Bytes of all states shown in one room.")] = 256 * _KIB
    max_state: Annotated[int, About(SIZE, "Bytes in the state that one session shows in a room.")] = 4 * _KIB
    max_payload: Annotated[int, About(SIZE, "Bytes in the payload of one broadcast.")] = 16 * _KIB
    broadcast_rate: Annotated[
        int,
        About(
            NUMBER,
            "Broadcasts and states a second that one stream may send, and twice as many at once; above it only the "
            "latest of each kind is kept until its turn. 0 for no limit.",
        ),
    ] = 60
    room_rate: Annotated[int, About(NUMBER, "The same for all streams of a process in one room.")] = 500

    log_level: Annotated[LogLevel, About(_one_of("info", "warning", "error"), "The least that is logged.")] = "info"
    log_format: Annotated[
        LogFormat, About(_one_of("auto", "json", "text"), "`auto` writes text to a terminal and JSON elsewhere.")
    ] = "auto"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **overrides: str | int | None) -> Settings:
        """Settings of the environment; `overrides` that are not None win, written as there or as plain numbers.

        Raises SettingsError with every fault.
        """
        faults: list[str] = []
        values: dict[str, Any] = {}
        for name, about in SETTINGS.items():
            try:
                text = _text_of(name, about, environ, overrides)
                if text is not None:
                    values[name] = about.kind.read(text)
            except (ValueError, OSError) as fault:
                faults.append(f"{variable(name)}: {fault}")
        settings = cls(**values)
        faults += _contradictions(settings)
        if faults:
            raise SettingsError(faults)
        return settings

    def to_environ(self) -> dict[str, str]:
        """The variables that say the same in an environment without others of ours."""
        return {
            variable(name): SETTINGS[name].kind.write(value)
            for name, value in structs.asdict(self).items()
            if value is not None
        }

    @property
    def database_name(self) -> str:
        """The database's URL without its password, for people."""
        return without_password(self.database_url)

    @property
    def has_keys(self) -> bool:
        """Whether tokens can be checked; without, the service runs in development mode."""
        return any(getattr(self, name) for name in KEY_SETTINGS)


def for_development(settings: Settings, folder: Path, chance: Callable[[int], bytes]) -> Settings:
    """Settings with a secret of their own, made once and kept in `folder` for its owner alone.

    For a service that only this machine reaches; SettingsError when it listens elsewhere. `chance(n)` gives n bytes.
    """
    if not _is_loopback(settings.host):
        ways = ", ".join(variable(name) for name in KEY_SETTINGS)
        raise SettingsError(
            [f"on {settings.host} others may reach the service, so tokens must be checked: set one of {ways}"]
        )
    return structs.replace(settings, jwt_secret=development_secret(folder, chance))


def development_secret(folder: Path, chance: Callable[[int], bytes]) -> str:
    """The secret kept in `folder`, made if there is none."""
    path = folder / "dev-secret"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Written whole before it has its name: two processes that start at once end up with one secret.
            draft = folder / f".dev-secret-{chance(8).hex()}"
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(chance(MIN_SECRET).hex())
            with suppress(FileExistsError):
                os.link(draft, path)
            draft.unlink()
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as fault:
        raise SettingsError([f"the secret of development mode cannot be kept: {fault}"]) from fault


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def variable(name: str) -> str:
    """The environment's name of a setting."""
    return PREFIX + name.upper()


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that are no setting: misspelt ones, mostly."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in VARIABLES)


def without_password(url: str) -> str:
    """A URL with its password, if any, replaced."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def _text_of(
    name: str, about: About, environ: Mapping[str, str], overrides: Mapping[str, str | int | None]
) -> str | None:
    """What is written for a setting, or None when nothing is (an empty text is nothing)."""
    override = overrides.get(name)
    if override is not None:
        return str(override)
    text = environ.get(variable(name))
    file = environ.get(f"{variable(name)}_FILE") if about.secret else None
    if file and text:
        raise ValueError("given twice, as text and by file")
    if file:
        text = Path(file).read_text(encoding="utf-8").strip()
        if not text:
            raise ValueError(f"{file} is empty")
    return text or None


def _contradictions(settings: Settings) -> list[str]:
    """Faults of values that can be read."""
    faults = []
    for name, least, most in _BOUNDS:
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            faults.append(f"{variable(name)}: {value} is not between {least} and {most}")
    given = [variable(name) for name in KEY_SETTINGS if getattr(settings, name)]
    if len(given) > 1:
        faults.append(f"{' and '.join(given)}: tokens are checked in one way; give one of them")
    if settings.jwt_secret is not None and len(settings.jwt_secret.encode()) < MIN_SECRET:
        faults.append(f"{variable('jwt_secret')}: HS256 needs a secret of {MIN_SECRET} bytes at least")
    if settings.jwt_jwks_url is not None and not settings.jwt_jwks_url.startswith(("https://", "http://")):
        faults.append(f"{variable('jwt_jwks_url')}: an https:// or http:// URL is expected")
    strange = [name for name in settings.jwt_algorithms if name not in ALGORITHMS]
    if strange or not settings.jwt_algorithms:
        faults.append(f"{variable('jwt_algorithms')}: some of {', '.join(ALGORITHMS)} are expected")
    if "://" not in settings.database_url and not settings.database_url.startswith("sqlite:"):
        faults.append(f"{variable('database_url')}: a URL is expected, such as sqlite:////path/to/file")
    return faults


def _declared() -> dict[str, About]:
    """Each setting's description, out of its annotation."""
    hints = get_type_hints(Settings, include_extras=True)
    return {
        field.name: next(part for part in get_args(hints[field.name]) if isinstance(part, About))
        for field in structs.fields(Settings)
        if get_origin(hints[field.name]) is Annotated
    }


SETTINGS: Final[Mapping[str, About]] = _declared()
VARIABLES: Final = frozenset(variable(name) for name in SETTINGS) | frozenset(
    f"{variable(name)}_FILE" for name, about in SETTINGS.items() if about.secret
)
"""All variables that are read."""
DEFAULTS: Final[Mapping[str, Any]] = {field.name: field.default for field in structs.fields(Settings)}
_YEARS: Final = 36_500 * _DAY
_BOUNDS: Final = (
    ("port", 0, 65_535),
    ("workers", 1, 256),
    ("shutdown_timeout", 0, _DAY),
    ("retention", 0, _YEARS),
    ("journal_retention", 0, _YEARS),
    ("housekeeping_interval", 10, _DAY),
    ("max_drift", 0, _YEARS),
    ("max_mutations", 1, 100_000),
    ("max_body", _KIB, _BYTES["GiB"]),
    ("max_doc", 1, _BYTES["GiB"]),
    ("cascade_limit", 0, 10_000_000),
    ("rate_limit", 0, 10**9),
    ("poll_interval", 1, _DAY),
    ("capture_interval", 10, 5 * _SECOND),
    ("pull_buffer", _KIB, _BYTES["GiB"]),
    ("stream_buffer", _KIB, _BYTES["GiB"]),
    ("hello_timeout", 1, _DAY),
    ("heartbeat", 10, _DAY),
    ("stall_timeout", 10, _DAY),
    ("max_streams", 1, 10_000_000),
    ("max_opening", 1, 1_000_000),
    ("streams_per_user", 1, 1_000_000),
    ("reconnect_spread", 0, _DAY),
    ("max_frame", _KIB, _BYTES["GiB"]),
    ("max_scopes", 1, 1_000_000),
    ("frame_rate", 0, 10**9),
    ("rooms_per_stream", 0, 1_000_000),
    ("room_members", 1, 1_000_000),
    ("room_state", 1, _BYTES["GiB"]),
    ("max_state", 1, 512 * _KIB),
    ("max_payload", 1, 512 * _KIB),
    ("broadcast_rate", 0, 10**9),
    ("room_rate", 0, 10**9),
)
