from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.configuration import config
from monitor.configuration.config import Config, ConfigError, load, parse
from monitor.configuration.keys import KEYS
from monitor.configuration.mutes import Mute, Violation

EXAMPLE = Path(__file__).parents[2] / "docs" / "config.example.toml"
DEFAULTS = parse("", "defaults")
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.toml")
    return str(caught.value).splitlines()


def test_defaults() -> None:
    assert DEFAULTS.attach == "auto"
    assert DEFAULTS.web.listen_address == ("127.0.0.1", 10462)
    assert DEFAULTS.web.config_file is None
    assert DEFAULTS.output == config.Output(
        format="auto", events_file=None, events_file_max_size=268435456, journal=False
    )
    assert DEFAULTS.events == config.Events(
        denials=("sealed", "unverified"),
        faults=("guard_region", "prot_none", "stack_guard", "sealed", "pkey"),
        handled_faults=("sealed",),
        seals=False,
        command_line="redacted",
    )
    assert DEFAULTS.rate_limit == config.RateLimit(per_caller=10, burst=100, host=1000)
    assert DEFAULTS.canary.interval == 60
    assert DEFAULTS.workloads.maximum == 64
    assert DEFAULTS.ring.size == 2097152
    assert DEFAULTS.watch == config.Watch(compat=False, io_uring=False)
    assert (DEFAULTS.state.directory, DEFAULTS.state.pin) == (None, None)
    assert DEFAULTS.mutes == ()


def test_example_is_every_key_with_its_default_and_description() -> None:
    text = EXAMPLE.read_text()
    assert parse(text, "example") == DEFAULTS
    given = {
        f"{name}.{leaf}" if isinstance(value, dict) else name: item
        for name, value in tomllib.loads(text).items()
        for leaf, item in (value.items() if isinstance(value, dict) else [("", value)])
    }
    assert given == {key.name: key.default for key in KEYS}
    prose = " ".join(text.replace("# ", "").split())
    for key in KEYS:
        assert f"{key.description} {key.path[-1]} = " in prose


def test_example_of_mutes_is_valid() -> None:
    entries = EXAMPLE.read_text().partition("\n# [[mute]]\n")
    text = re.sub(r"(?m)^# ?", "", "".join(entries[1:]))
    assert parse(text, "example").mutes == (
        Mute(
            executable="/opt/engine/*",
            operation="munmap",
            owner="root",
            user="engine",
            unit="engine.service",
            build_id="93ac61ec5a8eb1396f9fbd350e3169a558528a40",
            until=datetime(2030, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            reason="unmaps at exit what it sealed; fixed in the next release",
        ),
        Mute(
            executable="/opt/fuzzer/*",
            cause="guard_region",
            user="fuzzer",
            reason="feeds a parser with what makes it crash",
        ),
        Mute(
            executable="/usr/bin/gdb",
            method="proc_mem_write",
            user="developer",
            reason="developers set breakpoints here",
        ),
        Mute(
            program="/opt/engine/run",
            unit="engine.service",
            reason="brings a C library of its own, and unmaps what it sealed",
        ),
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:9100", ("::1", 9100)),
        ("[fe80::1%eth0]:9100", ("fe80::1%eth0", 9100)),
        ("localhost:10462", ("localhost", 10462)),
    ],
)
def test_listen_address(text: str, address: tuple[str, int]) -> None:
    assert parse(f'web.listen_address = "{text}"', "c").web.listen_address == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":10462", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1"),
        *("127.0.0.1:\u0661", "256.0.0.1:80", "1.2.3:80", "::1:80", "[127.0.0.1]:80", "[::1]"),
        *("a b:80", "-a:80", "http://127.0.0.1:80", "127.0.0.1:80\\n", "é:80"),
    ],
)
def test_listen_address_refused(text: str) -> None:
    (message,) = mistakes(f'[web]\nlisten_address = "{text}"')
    assert message.startswith("c.toml:2: key 'web.listen_address': ")
    assert message.endswith(
        "; write ADDR:PORT, as in 127.0.0.1:10462, [::1]:10462 or 0.0.0.0:10462"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'atach = "auto"',
            ["1: key 'atach': there is no such key; the nearest valid one is 'attach'"],
        ),
        (
            '[web]\n\n# listen_adress\nlisten_adress = "x"',
            [
                "4: key 'web.listen_adress': there is no such key; "
                "the nearest valid one is 'web.listen_address'"
            ],
        ),
        (
            "[event]\nseals = true",
            ["1: key 'event': there is no such key; the nearest valid one is 'events'"],
        ),
        (
            'listen_address = "x"',
            [
                "1: key 'listen_address': there is no such key; "
                "the nearest valid one is 'web.listen_address'"
            ],
        ),
        (
            '"web.listen_address" = "127.0.0.1:1"',
            [
                "1: key '\"web.listen_address\"': there is no such key; "
                "the nearest valid one is 'web.listen_address'"
            ],
        ),
        (
            "web = 3",
            ["1: key 'web': it is a section; write [web] and its keys on the lines beneath"],
        ),
        (
            'attach = "fast"',
            [
                "1: key 'attach': 'fast' is not valid; "
                "choose auto, fexit, tracepoint or raw_tracepoint"
            ],
        ),
        (
            "attach = true",
            [
                "1: key 'attach': true is not valid; "
                "choose auto, fexit, tracepoint or raw_tracepoint"
            ],
        ),
        (
            "[attach]\nx = 1",
            [
                "1: key 'attach': a table is not valid; "
                "choose auto, fexit, tracepoint or raw_tracepoint"
            ],
        ),
        (
            "[output]\nevents_file = 7",
            ["2: key 'output.events_file': 7 is not a string; write it in quotes"],
        ),
        (
            '[output]\nevents_file = "a\\u0000b"',
            ["2: key 'output.events_file': 'a\\x00b' has a NUL character; no file has such a name"],
        ),
        (
            '[state]\npin = "seal-monitor"',
            ["2: key 'state.pin': 'seal-monitor' is no absolute path; write it from / on"],
        ),
        (
            '[events]\nseals = "no"',
            ["2: key 'events.seals': 'no' is not a switch; write true or false"],
        ),
        (
            '[events]\ndenials = [\n  "sealed",\n  "all",\n]',
            [
                "2: key 'events.denials': 'all' is not valid; "
                "choose sealed, not_sealed or unverified"
            ],
        ),
        (
            '[events]\ndenials = "sealed"',
            [
                "2: key 'events.denials': 'sealed' is not a list; "
                "write [] or a list of sealed, not_sealed or unverified"
            ],
        ),
        (
            "[rate_limit]\nburst = 0\nhost = 1.5\nper_caller = true",
            [
                "2: key 'rate_limit.burst': 0 is out of range; write 1 to 1000000",
                "3: key 'rate_limit.host': 1.5 is not an integer; write one from 1 to 1000000",
                "4: key 'rate_limit.per_caller': true is not an integer; "
                "write one from 1 to 1000000",
            ],
        ),
        (
            "[canary]\ninterval = -1",
            ["2: key 'canary.interval': -1 is out of range; write 0 to 86400"],
        ),
        (
            "[canary]\ninterval = 0x" + "f" * 5000,
            ["2: key 'canary.interval': a number beyond 64 bits is out of range; write 0 to 86400"],
        ),
        (
            "[ring]\nsize = 100000",
            ["2: key 'ring.size': 100000 is not a power of two; the next one is 131072"],
        ),
        (
            "[ring]\nsize = 32768",
            ["2: key 'ring.size': 32768 is out of range; write 65536 to 67108864"],
        ),
        (
            "[mute]\nreason = 'x'",
            ["1: key 'mute': it is a list of tables; write [[mute]] above each entry"],
        ),
        (
            "[[mute]]\ncause = 'pkey'\nreason = 'x'\n[[mute]]\nexecutabel = 'x'",
            [
                "4: key 'mute': it has no reason; add one, "
                'as in reason = "unmaps what it sealed"',
                "4: key 'mute': it names nothing to mute; "
                "add executable, program, operation, cause, method, owner, user, unit or build_id",
                "5: key 'mute.executabel': there is no such key; "
                "the nearest valid one is 'mute.executable'",
            ],
        ),
        (
            "[[mute]]\ncause = 'pkey'\noperation = 'brk'\nreason = ' '\nuntil = 'tomorrow'",
            [
                "1: key 'mute': only denials have an operation, only faults a cause, "
                "only bypasses a method; write an entry for each",
                "4: key 'mute.reason': it is empty; write some text",
                "5: key 'mute.until': 'tomorrow' is not a date; "
                "write 2030-12-31 or 2030-12-31T18:00:00Z",
            ],
        ),
        (
            "attach = auto",
            [
                "1: not valid TOML: Invalid value at column 10; "
                "write key = value, strings in quotes, switches as true or false"
            ],
        ),
        (
            "attach =\n",
            [
                "1: not valid TOML: Invalid value at column 9; "
                "write key = value, strings in quotes, switches as true or false"
            ],
        ),
        (
            'attach = "auto"\nx = [',
            [
                "2: not valid TOML: Invalid value (at end of document); "
                "write key = value, strings in quotes, switches as true or false"
            ],
        ),
    ],
)
def test_mistakes(text: str, expected: list[str]) -> None:
    assert mistakes(text) == [f"c.toml:{line}" for line in expected]


@pytest.mark.parametrize("form", ['attach = "{}"', '"{}" = 1', '[[mute]]\n"{}" = 1'])
@pytest.mark.parametrize("character", ["x", "\\u001b", "\u202e", "\\n", "\U0001f512"])
def test_mistakes_are_bounded_and_printable(form: str, character: str) -> None:
    message = mistakes(form.format(character * 1000))[-1]
    assert len(message) < 600
    assert message.isprintable()


def test_nested_too_deeply() -> None:
    assert mistakes("x = " + "[" * 5000) == [
        "c.toml: not valid TOML: nested too deeply; "
        "write key = value, strings in quotes, switches as true or false"
    ]


BAD = "canary.interval = 99999999"


@pytest.mark.parametrize(
    ("before", "text", "line"),
    [
        ("comments", "# canary.interval = 1\n\n" + BAD, 3),
        ("section", "[web]\n[canary]\ninterval = -1", 3),
        ("quoted section", "['web']\n[ \"canary\" ] # [web]\n'interval' = -1", 3),
        ("escaped key", '\n["canar\\u0079"]\ninterval = -1', 3),
        ("spaces", "\n\n  canary  .  interval=-1", 3),
        ("inline table", "\n\ncanary = { interval = -1 }", 3),
        ("key in a string", 'attach = "\\"canary.interval\\" = 1"\n' + BAD, 2),
        ("lines in a string", 'attach = """\n[canary]\ninterval = 1\n\\""" """\n' + BAD, 5),
        ("quotes at its end", 'attach = """a"""""\n' + BAD, 2),
        ("literal string", "attach = '''\n[canary]\ninterval = 1\n'''''\n" + BAD, 5),
        ("backslash", "attach = 'a\\'\n" + BAD, 2),
        ("list over lines", "events.denials = [ # ]\n '[', \n\n ']', [\n] ]\n" + BAD, 6),
        ("line ends of DOS", "# a\r\n\r\n" + BAD + "\r\n", 3),
        ("empty key", '"" = """\n"""\n' + BAD, 3),
        ("after array", "[[mute]]\n[[mute]]\n[canary]\ninterval = -1", 4),
    ],
)
def test_line_of_key(before: str, text: str, line: int) -> None:
    messages = [message for message in mistakes(text) if "'canary.interval'" in message]
    assert [message.split(": ")[0] for message in messages] == [f"c.toml:{line}"], before


def test_all_mistakes_are_listed_by_their_lines() -> None:
    text = '[watch]\ncompat = 1\n[nothing]\n[web]\nconfig_file = 1\n[output]\nformat = "x"'
    assert [message.split(": ")[:2] for message in mistakes(text)] == [
        ["c.toml:2", "key 'watch.compat'"],
        ["c.toml:3", "key 'nothing'"],
        ["c.toml:5", "key 'web.config_file'"],
        ["c.toml:7", "key 'output.format'"],
    ]


@pytest.mark.parametrize(
    ("what", "executable", "muted"),
    [
        ("munmap", "/usr/bin/engine", [True, False, True, False, True, False]),
        ("munmap", "engine", [True, False, True, False, False, False]),
        ("mmap", "/usr/bin/engine", [True, False, False, False, False, False]),
        ("pkey", "/usr/bin/engine", [True, True, False, False, False, False]),
        ("pkey", "/opt/engine", [True, True, False, False, False, False]),
        ("other", "/opt/machine", [False, False, False, False, False, False]),
        ("ptrace_poke", "/usr/bin/gdb", [False, False, False, False, False, True]),
        ("proc_mem_write", "/usr/bin/gdb", [False, False, False, False, False, False]),
        (None, "/opt/engine", [True, False, False, False, False, False]),
    ],
)
def test_mute_applies(what: str | None, executable: str, muted: list[bool]) -> None:
    text = """
    mute = [
        {executable = "eng*", reason = "r"},
        {cause = "pkey", reason = "r"},
        {operation = "munmap", reason = "r"},
        {executable = "Eng*", reason = "r"},
        {executable = "/usr/*", operation = "munmap", reason = "r"},
        {method = "ptrace_poke", reason = "r"},
    ]"""
    applies = [
        mute.applies(Violation(what, executable, "host"), NOW) for mute in parse(text, "c").mutes
    ]
    assert applies == muted


@pytest.mark.parametrize(
    ("until", "now", "applies"),
    [
        ("2030-01-01", NOW + timedelta(hours=11), True),
        ("2030-01-01", NOW + timedelta(hours=12), False),
        ("2030-01-01T12:00:00Z", NOW, True),
        ("2030-01-01T12:00:00", NOW + timedelta(seconds=1), False),
        ("2030-01-01T12:00:00+02:00", NOW, False),
        ("2030-01-01T12:00:00Z", NOW.astimezone(timezone(timedelta(hours=9))), True),
        ("9999-12-31", NOW, True),
        ("9999-12-31T23:59:59-23:59", NOW, True),
        ("0001-01-01T00:00:00+23:59", NOW, False),
    ],
)
def test_mute_until(until: str, now: datetime, applies: bool) -> None:
    (mute,) = parse(f"[[mute]]\ncause = 'pkey'\nreason = 'r'\nuntil = {until}", "c").mutes
    assert mute.expired(now) is not applies
    assert mute.applies(Violation("pkey", "x"), now) is applies


def test_overrides_beat_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'attach = "fexit"\n[web]\nlisten_address = "127.0.0.1:1"\n[canary]\ninterval = 5'
    )
    loaded = load(file, {"web.listen_address": "[::1]:0", "output.format": "json"})
    assert loaded.web.listen_address == ("::1", 0)
    assert loaded.output.format == "json"
    assert (loaded.attach, loaded.canary.interval) == ("fexit", 5)


def test_events_go_somewhere(tmp_path: Path) -> None:
    text = '[output]\nformat = "none"\n'
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.toml")
    assert str(caught.value) == (
        "output.format is none, and events would go nowhere; "
        "name an output.events_file or set output.journal = true"
    )
    assert parse(f"{text}journal = true", "c.toml").output.journal
    file = tmp_path / "c.toml"
    file.write_text(text)
    assert load(file, {"output.events_file": "/e"}).output.events_file == Path("/e")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"output.format": "xml"},
            "command line: --output: 'xml' is not valid; choose auto, pretty, json or none",
        ),
        (
            {"ring.size": "1"},
            "command line: ring.size: '1' is not an integer; write one from 65536 to 67108864",
        ),
        (
            {"web.adress": "x"},
            "command line: key 'web.adress': there is no such key; "
            "the nearest valid one is 'web.listen_address'",
        ),
    ],
)
def test_override_mistakes_follow_those_of_the_file(
    tmp_path: Path, overrides: Mapping[str, object], expected: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("attach = 1")
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    assert str(caught.value).splitlines() == [
        f"{file}:1: key 'attach': 1 is not valid; choose auto, fexit, tracepoint or raw_tracepoint",
        expected,
    ]


def test_without_a_path_the_default_file_counts_if_present(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert load(None, {}, default=file) == DEFAULTS
    file.write_text('attach = "fexit"')
    assert load(None, {}, default=file).attach == "fexit"


def unreadable(path: Path, kind: str) -> None:
    match kind:
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "binary":
            path.write_bytes(b"# a\n\xff")
        case "large":
            path.write_bytes(b"#" * 1_000_000)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "cannot read '{}': No such file or directory; make it a readable file or"),
        ("directory", "cannot read '{}': Is a directory; make it a readable file or"),
        ("loop", "cannot read '{}': Too many levels of symbolic links; make it a readable"),
        ("binary", "{}:2: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("large", "{}: larger than 262144 bytes; is it the right file?"),
    ],
)
def test_unreadable_file(tmp_path: Path, kind: str, expected: str) -> None:
    file = tmp_path / "c.toml"
    unreadable(file, kind)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(caught.value).startswith(expected.format(file))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_permission_denied(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.touch(mode=0)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError) as caught:
            load(file, {})
    finally:
        os.seteuid(0)
    assert str(caught.value) == (
        f"cannot read '{file}': Permission denied; make it a readable file or name another"
    )


def test_nul_in_the_path() -> None:
    with pytest.raises(ConfigError, match="no file has such a name"):
        load(Path("a\0b"), {})


KEY_FRAGMENTS = [
    *(key.name for key in KEYS),
    *(f"[{key.path[0]}]\n{key.path[-1]}" for key in KEYS),
    *("[[mute]]\n", "reason", "until", "executable", "operation", "cause", "[a.b.c.d.e.f]\n"),
]
VALUE_FRAGMENTS = [
    *("1", "-1", "1.5", "inf", "true", "2030-01-01", "12:00:00", "0xffffffffffffffffffff"),
    *('"x"', "'auto'", '"sealed"', '""', "[]", "{}", "[[]]", "{a.b = 1}", "[{reason = 1}]"),
]
MARKS = [
    *(" = ", "=", "\n", ".", ",", "[", "]", "{", "}", "[[", "]]", "#", "'", '"', '"""', "'''"),
    *("\\", "\r\n", "é", "\0"),
]
FRAGMENTS = KEY_FRAGMENTS + VALUE_FRAGMENTS + MARKS
OUTCOMES = st.one_of(
    st.text(st.characters()),
    st.lists(st.sampled_from(FRAGMENTS)).map("".join),
    st.lists(st.tuples(st.sampled_from(KEY_FRAGMENTS), st.sampled_from(VALUE_FRAGMENTS))).map(
        lambda pairs: "\n".join(" = ".join(pair) for pair in pairs)
    ),
)


def outcome(read: Callable[[], Config]) -> Config | list[str]:
    try:
        return read()
    except ConfigError as error:
        return str(error).split("\n")


def is_config_or_mistakes(result: Config | list[str], name: str) -> bool:
    return isinstance(result, Config) or all(
        line.startswith(f"{name}:") and line.isprintable() for line in result
    )


@settings(max_examples=500)
@given(OUTCOMES)
def test_any_text_is_a_config_or_clear_mistakes(text: str) -> None:
    assert is_config_or_mistakes(outcome(lambda: parse(text, "c.toml")), "c.toml")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_any_file_is_a_config_or_clear_mistakes(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(data)
    assert is_config_or_mistakes(outcome(lambda: load(file, {})), str(file))


@pytest.mark.parametrize(
    ("pattern", "files", "muted"),
    [
        ("/usr/bin/app", "host", True),
        ("/usr/bin/app", "namespace", False),
        ("/usr/bin/app", None, False),
        ("app", "namespace", True),
    ],
)
def test_a_path_of_a_mute_is_the_hosts(pattern: str, files: str | None, muted: bool) -> None:
    (mute,) = parse(f'mute = [{{executable = "{pattern}", reason = "known"}}]', "c").mutes
    assert mute.applies(Violation("munmap", "/usr/bin/app", files), NOW) is muted
