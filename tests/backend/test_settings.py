"""Settings: read from the environment, every fault named, documented."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark.settings import (
    DEFAULTS,
    DURATION,
    SETTINGS,
    SIZE,
    Settings,
    SettingsError,
    development_secret,
    for_development,
    read_duration,
    read_size,
    unknown,
    variable,
    without_password,
)

SECRET = "a secret of tests, 32 bytes or more"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
ROW = re.compile(r"\| `(TIDEMARK_[A-Z_]+)`( 🔑)? \| ([^|]*) \| (?:`([^`]*)`)? ?\| (.*) \|")


def read(**environ: str) -> Settings:
    """Settings of an environment given without the prefix."""
    return Settings.from_environ({f"TIDEMARK_{name}": value for name, value in environ.items()})


def faults(**environ: str) -> list[str]:
    """The faults of an environment."""
    with pytest.raises(SettingsError) as caught:
        read(**environ)
    return caught.value.faults


def test_an_empty_environment_gives_the_defaults() -> None:
    """Every setting has a safe default."""
    assert Settings.from_environ({}) == Settings()
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "millis"), [("20ms", 20), ("10s", 10_000), ("30m", 1_800_000), ("12h", 43_200_000), ("90d", 7_776_000_000)]
)
def test_durations_are_milliseconds(text: str, millis: int) -> None:
    """The five units of a duration are read."""
    assert read_duration(text) == millis


@pytest.mark.parametrize("text", ["", "10", "s", "1.5s", "-1s", "10 s", "10S", "10s\n", "1w", "٣s", "1e3s"])
def test_other_durations_are_refused(text: str) -> None:
    """Nothing is guessed about a duration."""
    with pytest.raises(ValueError, match="written"):
        read_duration(text)


@pytest.mark.parametrize(("text", "size"), [("512KiB", 524_288), ("1MiB", 1_048_576), ("2GiB", 1 << 31), ("77", 77)])
def test_sizes_are_bytes(text: str, size: int) -> None:
    """Sizes are read in binary units or as a number."""
    assert read_size(text) == size


def test_what_is_given_is_taken() -> None:
    """Variables of each kind reach their attribute."""
    settings = read(
        JWT_SECRET=SECRET,
        PORT="9000",
        RETENTION="1s",
        MAX_BODY="2MiB",
        ORIGINS="https://a.example, https://b.example ,",
    )
    assert (settings.jwt_secret, settings.port, settings.retention, settings.max_body) == (SECRET, 9000, 1000, 2 << 20)
    assert settings.origins == ("https://a.example", "https://b.example")


def test_options_win_over_the_environment() -> None:
    """An override counts unless it is None."""
    environ = {"TIDEMARK_PORT": "1", "TIDEMARK_HOST": "::1"}
    settings = Settings.from_environ(environ, port=9000, host=None)
    assert (settings.port, settings.host) == (9000, "::1")


def test_an_empty_variable_is_not_given() -> None:
    """A variable set to nothing leaves the default."""
    assert read(JWT_SECRET="", PORT="") == Settings()


def test_every_fault_is_named() -> None:
    """All that is wrong comes at once, each with its variable."""
    found = faults(PORT="99999", RETENTION="long", JWT_SECRET="short", LOG_LEVEL="chatty", JWT_ALGORITHMS="none,HS256")
    assert sorted(fault.partition(":")[0] for fault in found) == [
        "TIDEMARK_JWT_ALGORITHMS",
        "TIDEMARK_JWT_SECRET",
        "TIDEMARK_LOG_LEVEL",
        "TIDEMARK_PORT",
        "TIDEMARK_RETENTION",
    ]


@pytest.mark.parametrize(
    "environ",
    [
        {"JWT_SECRET": "x" * 31},
        {"JWT_SECRET": SECRET, "JWT_JWKS_URL": "https://id.example/keys"},
        {"JWT_JWKS_URL": "file:///etc/passwd"},
        {"JWT_ALGORITHMS": "HS256"},
        {"DATABASE_URL": "tidemark.db"},
        {"WORKERS": "0"},
        {"PORT": "8000.0"},
        {"PORT": "-1"},
        {"MAX_BODY": "0"},
    ],
)
def test_contradictions_are_refused(environ: dict[str, str]) -> None:
    """Values that can be read and make no sense are faults."""
    assert len(faults(**environ)) == 1


def test_a_fault_does_not_show_a_secret() -> None:
    """A secret that is refused is not in the message."""
    assert "hunter2" not in str(faults(JWT_SECRET="hunter2"))


@pytest.mark.parametrize("name", [name for name, about in SETTINGS.items() if about.secret])
def test_secrets_may_come_from_files(name: str, tmp_path: Path) -> None:
    """`…_FILE` names a file whose text is the value, white space around it aside."""
    file = tmp_path / "secret"
    text = "postgresql://db/x" if name in {"database_url", "wake"} else SECRET
    file.write_text(f"{text}\n")
    assert getattr(Settings.from_environ({f"{variable(name)}_FILE": str(file)}), name) == text


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """Missing and empty files are named; text and file together are refused."""
    empty = tmp_path / "empty"
    empty.touch()
    assert "No such file" in faults(JWT_SECRET_FILE=str(tmp_path / "none"))[0]
    assert "is empty" in faults(JWT_SECRET_FILE=str(empty))[0]
    assert "twice" in faults(JWT_SECRET_FILE=str(empty), JWT_SECRET=SECRET)[0]


def test_misspelt_settings_are_found() -> None:
    """Variables with the prefix that nobody reads are listed; files of secrets are known."""
    environ = {"TIDEMARK_RETENTON": "1s", "TIDEMARK_JWT_SECRET_FILE": "x", "TIDEMARK_PORT": "1", "PATH": "/"}
    assert unknown(environ) == ["TIDEMARK_RETENTON"]


def values(name: str) -> st.SearchStrategy[Any]:
    """Good values of a setting that is a number of some kind."""
    return st.integers(1_024, 65_535) if name != "workers" else st.integers(1, 64)


@given(
    st.fixed_dictionaries(
        {},
        optional={name: values(name) for name, default in DEFAULTS.items() if isinstance(default, int)}
        | {
            "origins": st.lists(st.sampled_from(["https://a.example", "*"])).map(tuple),
            "jwt_secret": st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=32),
            "schema": st.text("abc/._-", min_size=1),
            "capture_interval": st.integers(10, 1_000),
        },
    )
)
def test_settings_survive_the_way_through_the_environment(given_: dict[str, Any]) -> None:
    """What a process hands to those it starts says the same settings."""
    settings = Settings(**given_)
    assert Settings.from_environ(settings.to_environ()) == settings


def test_the_documents_list_every_setting() -> None:
    """The table of settings and the code say the same, both ways."""
    rows = {match[1]: match for match in map(ROW.fullmatch, DOCS.read_text(encoding="utf-8").splitlines()) if match}
    assert rows.keys() == {variable(name) for name in SETTINGS}
    for name, about in SETTINGS.items():
        _, secret, kind, default, text = rows[variable(name)].groups()
        assert (bool(secret), kind, text) == (about.secret, about.kind.name, about.text), name
        assert (about.kind.read(default) if default else DEFAULTS[name] or None) == (DEFAULTS[name] or None), name


def test_every_duration_and_size_has_a_number() -> None:
    """Durations and sizes are whole numbers in code."""
    for name, about in SETTINGS.items():
        if about.kind in (DURATION, SIZE):
            assert DEFAULTS[name] is None or isinstance(DEFAULTS[name], int)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:hunter2@db:5432/x", "postgresql://ada:***@db:5432/x"),
        ("postgresql://db/x", "postgresql://db/x"),
        ("sqlite:////var/x.db", "sqlite:////var/x.db"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    """A database's name for people is without its password."""
    assert without_password(url) == shown


def test_the_development_secret_is_made_once(tmp_path: Path) -> None:
    """It is long, its owner's alone, and found again."""
    folder = tmp_path / "var"
    secret = development_secret(folder, os.urandom)
    assert len(secret) >= 32
    assert development_secret(folder, os.urandom) == secret
    assert [path.name for path in folder.iterdir()] == ["dev-secret"]
    assert stat.S_IMODE((folder / "dev-secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_development_mode_is_for_this_machine(host: str, tmp_path: Path) -> None:
    """On a loopback address the settings get the kept secret."""
    settings = for_development(Settings(host=host), tmp_path, os.urandom)
    assert settings.jwt_secret == (tmp_path / "dev-secret").read_text()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_development_mode_does_not_listen_elsewhere(host: str, tmp_path: Path) -> None:
    """Where others may reach the service, it does not start without keys, and no secret is made."""
    with pytest.raises(SettingsError, match="TIDEMARK_JWT_SECRET"):
        for_development(Settings(host=host), tmp_path, os.urandom)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    """Development mode says why its secret cannot be kept."""
    (tmp_path / "var").touch()
    with pytest.raises(SettingsError, match="cannot be kept"):
        development_secret(tmp_path / "var", os.urandom)
