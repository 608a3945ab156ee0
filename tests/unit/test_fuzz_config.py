"""Whatever a configuration holds: it is taken, or each mistake is a line that names its place."""

from __future__ import annotations

import contextlib
import io
import re
import string
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_records import fuzzed

from monitor import cli
from monitor.configuration import config
from monitor.configuration.config import Config, ConfigError
from monitor.configuration.keys import KEYS
from monitor.configuration.toml_lines import key_lines
from monitor.web.server import WebError
from monitor.web.web_config import WebConfig, load_web_config

NAME = "c.toml"
LINE_MAX = 1000  # characters of a mistake
NO_FILE = Path("/nonexistent/seal-monitor/config.toml")
PLACED = re.compile(rf"{re.escape(NAME)}:(\d+): (key '.*': .+|not valid TOML: .+)")
UNPLACED = (  # the parser does not say where
    f"{NAME}: not valid TOML: nested too deeply; ",
    f"{NAME}: not valid TOML: a number of thousands of digits; ",
)


def lines_of(read: Callable[[], object], error: type[Exception]) -> list[str]:
    """The mistakes; none where all is well."""
    try:
        read()
    except error as found:
        lines = str(found).split("\n")
        assert all(line.isprintable() and 0 < len(line) < LINE_MAX for line in lines)
        return lines
    return []


def assert_clear(text: str) -> None:
    """Each mistake names a line of the file, and the key, and says something of it."""
    for line in lines_of(lambda: config.parse(text, NAME), ConfigError):
        if line.startswith(UNPLACED):
            continue
        found = PLACED.fullmatch(line)
        assert found, line
        assert 1 <= int(found[1]) <= text.count("\n") + 1


# ---- TOML ----------------------------------------------------------------------------------------

BARE = string.ascii_letters + string.digits + "_-"
SECTIONS = sorted({key.path[0] for key in KEYS if len(key.path) == 2} | {"mute"})
KNOWN = sorted({part for key in KEYS for part in key.path} | {"reason", "until", "executable"})
HOSTILE_TEXT = st.sampled_from(
    ["", "\0", "\n", "é", "\u202e", "\U0001f600", "'", '"""', "\\", "=", "#", "[[mute]]", "\x7f"]
)
TEXT = HOSTILE_TEXT | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.sampled_from(KNOWN) | st.text(st.sampled_from(BARE), min_size=1, max_size=12) | TEXT

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 10, 60, 65536, 2**20, 2**63]),
    st.floats(),
    TEXT,
    st.sampled_from(["auto", "sealed", "munmap", "guard_region", "off", "127.0.0.1:1", "[::1]:0"]),
    st.dates(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.times(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def escaped(text: str) -> str:
    """A basic string: JSON's, without pairs of surrogates."""
    return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


def key_text(name: str) -> str:
    return name if name and all(c in BARE for c in name) else escaped(name)


def value_text(value: object) -> str:
    match value:
        case str():
            return escaped(value)
        case list():
            return f"[{', '.join(map(value_text, value))}]"
        case dict():
            pairs = (f"{key_text(name)} = {value_text(item)}" for name, item in value.items())
            return f"{{{', '.join(pairs)}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def document_text(document: dict[str, Any]) -> str:
    """Dictionaries on top as sections, lists of them as [[arrays]] of tables."""
    plain: list[str] = []
    tables: list[str] = []
    for name, value in document.items():
        key = key_text(name)
        if isinstance(value, dict):
            tables += [f"[{key}]", *(f"{key_text(k)} = {value_text(v)}" for k, v in value.items())]
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                tables += [f"[[{key}]]"]
                tables += [f"{key_text(k)} = {value_text(v)}" for k, v in item.items()]
        else:
            plain.append(f"{key} = {value_text(value)}")
    return "\n".join([*plain, *tables])


SECTION_NAMES = st.sampled_from(SECTIONS) | NAMES
DOCUMENTS = st.dictionaries(
    SECTION_NAMES,
    st.dictionaries(NAMES, VALUES, max_size=4)
    | VALUES
    | st.lists(st.dictionaries(NAMES, VALUES, max_size=5), max_size=3),
    max_size=5,
)


@fuzzed
@given(DOCUMENTS)
def test_any_structure_is_a_config_or_clear_mistakes(document: dict[str, Any]) -> None:
    text = document_text(document)
    with contextlib.suppress(tomllib.TOMLDecodeError):  # seconds in the offset of a time zone
        tomllib.loads(text)
    assert_clear(text)


FRAGMENTS = st.sampled_from(
    [
        *(
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            "=",
            ".",
            ",",
            "#",
            "\n",
            "\r\n",
            " ",
            "\t",
            "\\",
            "'",
            '"',
        ),
        *('"""', "'''", "'''\n", '"""\n', '\\"', "\\\n", "0x", "1e400", "-", "inf", "1979-05-27"),
        *("T00:32:00.999999-07:00", "24:00:00", "9" * 5000, "[" * 300, "{a=" * 50, "\ufeff", "\0"),
        *(f"[{section}]\n" for section in SECTIONS),
        *(f"{key.path[-1]} = " for key in KEYS),
        *("mute.reason = 1\n", "mute = [{}]\n", "[web.config_file]\n", "[mute.until]\n"),
    ]
)


@fuzzed
@given(st.lists(FRAGMENTS | TEXT, max_size=20).map("".join))
@example("a = " + "[" * 5000)
@example("attach = " + "9" * 5000)
@example("[mute]\n[[mute.x]]\n")
@example("[[mute]]\nreason = 'x'\n[mute.executable]\n")
def test_any_text_is_a_config_or_clear_mistakes(text: str) -> None:
    assert_clear(text)


# Lines that stand for themselves anywhere in a table: nothing in them is a key of the file.
FILLERS = [
    *("", "# attach = 1", "   ", "\t# [web]", "reason = '# no comment'"),
    *('executable = """\nattach = 1\n[[mute]]\n"""', "executable = '''\n'x' = \"\n'''"),
    *("operation = 'munmap' # [[x]]", 'executable = "a]b[\\" = 1"', "until = 2030-01-01"),
]


@fuzzed
@given(
    st.lists(st.lists(st.sampled_from(FILLERS), max_size=4, unique_by=lambda f: f.split(" ")[0])),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["colour", "'colour'", '"col\\u006fur"', "colour.of.it", "colour . of"]),
    st.data(),
)
def test_a_wrong_key_is_named_with_its_line(
    tables: list[list[str]], newline: str, key: str, data: st.DataObject
) -> None:
    """Whatever stands around it."""
    lines = [line for table in tables for line in ("[[mute]]", *table)]
    place = data.draw(st.integers(0, len(lines)))
    before = "\n".join(lines[:place])
    lines.insert(place, f"{key} = [1,\n 2, # [mute]\n 3]")
    text = "\n".join(lines)
    printed = [
        line
        for line in lines_of(lambda: config.parse(text.replace("\n", newline), NAME), ConfigError)
        if "no such key" in line
    ]
    number = before.count("\n") + 2 if place else 1
    name = ".".join((["mute"] if place else []) + ["colour"])
    assert len(printed) == 1
    assert re.fullmatch(
        rf"{NAME}:{number}: key '{re.escape(name)}(\..*)?': there is no .*", printed[0]
    )


@fuzzed
@given(DOCUMENTS)
def test_every_key_has_a_line(document: dict[str, Any]) -> None:
    text = document_text(document)
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    rows = text.split("\n")
    for name, value in read.items():
        assert key_text(name) in rows[lines[(name,)] - 1]
        if isinstance(value, dict):
            for inner in value:
                assert key_text(inner) in rows[lines[name, inner] - 1]


# ---- Flags ---------------------------------------------------------------------------------------

FLAGS = [key for key in KEYS if key.flag]
FLAG_TEXT = TEXT | st.text(max_size=20) | st.sampled_from(["auto", "json", "1:2", "x:1", "/tmp/x"])


@fuzzed
@given(st.dictionaries(st.sampled_from([key.name for key in KEYS]) | NAMES, FLAG_TEXT | SCALARS))
def test_any_override_is_taken_or_refused(overrides: dict[str, object]) -> None:
    def read() -> Config:
        return config.load(None, overrides, default=NO_FILE)

    lines = lines_of(read, ConfigError)
    assert all(line.startswith("command line: ") for line in lines)
    if not lines:
        assert isinstance(read(), Config)


@fuzzed
@given(
    st.sampled_from(["check-config", "schema"]),
    st.lists(
        st.sampled_from([*(key.flag for key in FLAGS), "--json", "--", "-h", "--version", "--x=1"])
        | st.builds("{}={}".format, st.sampled_from([key.flag for key in FLAGS]), FLAG_TEXT)
        | FLAG_TEXT,
        max_size=4,
    ),
)
def test_any_command_line_ends_with_a_code_of_the_manual(command: str, words: list[str]) -> None:
    """These two commands start nothing."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code: object = cli.main([command, *words])
        except SystemExit as end:
            code = end.code
    assert code in (0, None, 1, 2)
    assert "Traceback" not in said.getvalue()
    assert "SEAL_MONITOR_DEBUG" not in said.getvalue()  # an error that nobody foresaw


@fuzzed
@given(st.text(st.characters(codec="utf-8")) | DOCUMENTS.map(document_text))
def test_check_config_prints_what_parse_finds(text: str) -> None:
    said, wrong = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, NAME)
        file.write_text(text, newline="")
        mistakes = lines_of(lambda: config.parse(text, str(file)), ConfigError)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            code = cli.main(["check-config", str(file)])
    printed = wrong.getvalue().splitlines()
    assert all(line.isprintable() for line in said.getvalue().splitlines())
    if mistakes:
        assert (code, printed) == (2, [f"seal-monitor: {line}" for line in mistakes])
    elif code:
        assert (code, len(printed)) == (2, 1)  # the web config file that it names
    else:
        assert said.getvalue().startswith(f"{file}: ok\n")


# ---- The web config file -------------------------------------------------------------------------

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$" + b"." * 22).decode()
YAML_KEYS = st.sampled_from(
    [
        *("tls_server_config", "basic_auth_users", "cert_file", "key_file", "min_version"),
        *("client_auth_type", "client_ca_file", "<<", "http_server_config", "alice", "a:b"),
        *("headers", "http2", "rate_limit", "interval", "burst", "cipher_suites", "cert", "key"),
    ]
)
YAML_SCALARS = st.one_of(
    SCALARS,
    st.sampled_from([HASH, "server.pem", "/dev/null", "..", "TLS13", "x" * 300, None]),
    st.text(max_size=12),  # lone surrogates, too
    st.binary(max_size=8),
)
YAML_VALUES = st.recursive(
    YAML_SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(YAML_KEYS | YAML_SCALARS, inner, max_size=4)
    ),
    max_leaves=8,
)
TLS = st.fixed_dictionaries(
    {"cert_file": YAML_SCALARS, "key_file": YAML_SCALARS},
    optional={
        "min_version": YAML_SCALARS,
        "client_auth_type": st.just("RequireAndVerifyClientCert") | YAML_SCALARS,
        "client_ca_file": YAML_SCALARS,
        **dict.fromkeys(("cert", "key", "client_ca", "max_version"), YAML_SCALARS),
        **dict.fromkeys(
            ("cipher_suites", "curve_preferences"),
            st.lists(st.sampled_from(["", "CurveP256", "TLS_AES_128_GCM_SHA256"]) | YAML_SCALARS),
        ),
        "client_allowed_sans": st.lists(YAML_SCALARS, max_size=3),
        "prefer_server_cipher_suites": YAML_SCALARS,
    },
)
WEB_DOCUMENTS = (
    st.fixed_dictionaries(
        {},
        optional={
            "tls_server_config": TLS | YAML_VALUES,
            "basic_auth_users": st.dictionaries(YAML_SCALARS, YAML_SCALARS, max_size=3)
            | YAML_VALUES,
            "http_server_config": YAML_VALUES,
            "rate_limit": st.fixed_dictionaries({"interval": YAML_SCALARS, "burst": YAML_SCALARS}),
        },
    )
    | YAML_VALUES
)


def assert_clear_web(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "web.yml")
        file.write_bytes(data)
        lines = lines_of(lambda: load_web_config(file), WebError)
        assert all(line.startswith((str(file), "cannot use ")) for line in lines)
        if not lines:
            assert isinstance(load_web_config(file), WebConfig)


@fuzzed
@given(WEB_DOCUMENTS)
def test_any_yaml_is_a_web_config_or_clear_mistakes(document: object) -> None:
    try:
        text = yaml.safe_dump(document, allow_unicode=False)
    except yaml.representer.RepresenterError:  # a time of day
        return
    assert_clear_web(text.encode(errors="replace"))


@fuzzed
@given(
    st.lists(
        st.sampled_from(
            [
                *("tls_server_config:\n", "basic_auth_users:\n", "  cert_file: ", "  key_file: "),
                *(
                    "&a ",
                    "*a",
                    "*b",
                    "<<: *a\n",
                    "- ",
                    "? ",
                    ": ",
                    "!!binary ",
                    "!!python/name:os\n",
                ),
                *("|\n", ">\n", "%YAML 9.9\n", "---\n", "...\n", '"\\ud800"\n', '"\\0"\n', "\t"),
                *("{" * 200, "[" * 2000, "'", '"', "~\n", f"  a: '{HASH}'\n", "\ufeff", "\x85"),
            ]
        )
        | TEXT,
        max_size=12,
    ).map("".join)
)
@example('tls_server_config:\n  cert_file: "\\ud800"\n  key_file: x\n')
@example('tls_server_config:\n  cert_file: "a\\nb"\n  key_file: x\n')
@example("&a [*a]: *a\n")
def test_any_yaml_text_is_a_web_config_or_clear_mistakes(text: str) -> None:
    assert_clear_web(text.encode(errors="surrogatepass"))
