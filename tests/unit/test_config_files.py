"""A configuration in several files: the main one and its drop-ins."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from clocks import at_most

from monitor.configuration.config import ConfigError, load, load_again, load_placed
from monitor.life.reload import merge

ROOT_ALONE = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


@pytest.fixture
def main(tmp_path: Path) -> Path:
    """A main file with an empty directory of drop-ins beside it."""
    (tmp_path / "config.d").mkdir(mode=0o755)
    path = tmp_path / "config.toml"
    path.write_text("")
    return path


def add(main: Path, name: str, text: str) -> Path:
    path = main.with_suffix(".d") / name
    path.write_text(text)
    return path


def mistakes(main: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(main, {})
    return str(caught.value).splitlines()


def test_later_files_replace_keys_and_add_mutes(main: Path) -> None:
    mute = '[[mute]]\noperation = "munmap"\nexecutable = "/opt/{}"\nreason = "known"\n'
    main.write_text(f"{mute.format('a')}[canary]\ninterval = 5\n[rate_limit]\nburst = 7\n")
    last = add(main, "9.toml", 'events.denials = ["sealed"]\ncanary.interval = 9\n')
    first = add(main, "10.toml", f"# two\n{mute.format('b')}{mute.format('c')}")
    second = add(main, "50.toml", 'events.denials = ["unverified"]\ncanary.interval = 50\n')
    found = load_placed(main, {"rate_limit.host": 3})
    assert found.files == (str(main), str(first), str(second), str(last))  # "1" before "9"
    assert found.config.canary.interval == 9
    assert found.config.events.denials == ("sealed",)
    assert found.config.rate_limit.burst == 7
    assert [mute.executable for mute in found.config.mutes] == ["/opt/a", "/opt/b", "/opt/c"]
    assert found.places == {
        "canary.interval": f"{last}:2",
        "rate_limit.burst": f"{main}:8",
        "events.denials": f"{last}:1",
        "rate_limit.host": "command line",
    }
    assert found.mute_places == (f"{main}:1", f"{first}:2", f"{first}:6")


def test_a_drop_in_that_is_removed_while_it_is_read_is_not_there(main: Path) -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for number in range(20):
                add(main, f"{number}.toml", "")
            for number in range(20):
                (main.with_suffix(".d") / f"{number}.toml").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(200):
            assert load(main, {}).canary.interval == 60
    finally:
        stop.set()
        thread.join()


def test_a_link_to_nothing_is_a_mistake(main: Path) -> None:
    (main.with_suffix(".d") / "a.toml").symlink_to("nowhere")
    (mistake,) = mistakes(main)
    assert mistake.endswith(
        "a.toml: No such file or directory; correct it, or remove it from the directory"
    )


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """As with --config <(COMMAND): the second time it says nothing, which would be all defaults."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with at_most(5, "it waits for a writer"):
        with pytest.raises(ConfigError) as caught:
            load_again(pipe, {})
        assert str(caught.value) == (
            f"cannot read '{pipe}' again: not a regular file; name one in its place"
        )
    assert load_again(Path(os.devnull), {}).canary.interval == 60
    file = tmp_path / "config.toml"
    file.write_text("canary.interval = 7")
    assert load_again(file, {}).canary.interval == 7
    with pytest.raises(ConfigError, match="No such file"):
        load_again(tmp_path / "missing", {})


def test_only_names_that_end_in_toml_count(main: Path) -> None:
    for name in (".hidden.toml", "a.toml.dpkg-old", "b.example", "README", "c.toml~"):
        add(main, name, "no toml")
    assert load_placed(main, {}).files == (str(main),)


def test_drop_ins_count_without_a_main_file(tmp_path: Path) -> None:
    default = tmp_path / "config.toml"
    default.with_suffix(".d").mkdir()
    add(default, "a.toml", "canary.interval = 7")
    assert load(None, {}, default=default).canary.interval == 7
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(default, {})


def test_a_file_of_another_name_has_none(tmp_path: Path) -> None:
    for name in ("monitor.toml", "monitor", "monitor.conf"):
        (tmp_path / name).write_text("")
    (tmp_path / "monitor.d").mkdir()
    add(tmp_path / "monitor", "a.toml", "canary.interval = 7")
    assert load(tmp_path / "monitor.toml", {}).canary.interval == 7
    assert load(tmp_path / "monitor", {}).canary.interval == 60
    assert load(tmp_path / "monitor.conf", {}).canary.interval == 60
    assert load(Path(os.devnull), {}).canary.interval == 60


def test_every_mistake_has_its_file_line_and_the_nearest_key(main: Path) -> None:
    main.write_text("\ncanary.interval = -1\n")
    first = add(main, "1.toml", "a = \n")
    second = add(main, "2.toml", "# x\n[web]\nlisten_adress = 'x'\n")
    third = add(main, "3.toml", "")
    third.write_bytes(b"\n\xff")
    fourth = add(main, "4.toml", "attach = 1")
    assert mistakes(main) == [
        f"{main}:2: key 'canary.interval': -1 is out of range; write 0 to 86400",
        f"{first}:1: not valid TOML: Invalid value at column 5; write key = value, strings in "
        "quotes, switches as true or false",
        f"{second}:3: key 'web.listen_adress': there is no such key; the nearest valid one is "
        "'web.listen_address'",
        f"{fourth}:1: key 'attach': 1 is not valid; choose auto, fexit, tracepoint or "
        "raw_tracepoint",
        f"{third}:2: byte 0xff is not UTF-8; save the file as UTF-8",
    ]


def test_a_reload_follows_files_that_come_and_go(main: Path) -> None:
    running = load(main, {})
    added = add(main, "a.toml", "events.seals = true\nring.size = 65536\n")
    asked = merge(running, load(main, {}))
    assert (asked.changed, asked.refused) == (("events.seals",), ("ring.size",))
    added.unlink()
    assert merge(asked.config, load(main, {})).changed == ("events.seals",)
    assert load(main, {}) == running


# ---- Hostile entries -----------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_suffix(".fifo"))
    path.symlink_to(path.with_suffix(".fifo"))


def gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (fifo, "not a regular file"),
        (link_to_fifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/nonexistent"), "No such file or directory"),
        (gigabyte, "1073741824 bytes, more than 262144"),
    ],
    ids=["fifo", "link to fifo", "link to device", "directory", "loop", "dangling", "1 GiB"],
)
def test_what_cannot_be_read(main: Path, make: Callable[[Path], None], why: str) -> None:
    path = main.with_suffix(".d") / "x.toml"
    make(path)
    with at_most(20, "a pipe that is waited for"):
        assert mistakes(main) == [
            f"cannot read {path}: {why}; correct it, or remove it from the directory"
        ]


def test_a_name_with_control_characters_is_escaped(main: Path) -> None:
    add(main, "a\nb\x1b.toml", "x = 1")
    (line,) = mistakes(main)
    assert line.startswith(f"{main.with_suffix('.d')}/a\\x0ab\\x1b.toml:1: key 'x': ")


def test_too_many_files(main: Path) -> None:
    for number in range(10_000):
        add(main, f"{number}.toml", "")
    assert mistakes(main) == [f"{main.with_suffix('.d')}: more than 256 files; join some of them"]


def test_too_much_in_all_files(main: Path) -> None:
    for number in range(6):
        add(main, f"{number}.toml", "#" * 200_000)
    assert mistakes(main) == [
        f"{main.with_suffix('.d')}/5.toml: more than 1048576 bytes with the files before"
    ]


def test_a_file_instead_of_the_directory(main: Path) -> None:
    main.with_suffix(".d").rmdir()
    main.with_suffix(".d").touch()
    assert mistakes(main) == [
        f"cannot read {main.with_suffix('.d')}: Not a directory; make it a readable directory"
    ]


def test_what_any_user_can_write_counts_for_nothing(main: Path) -> None:
    path = add(main, "a.toml", "")
    path.chmod(0o666)
    problem = "any user can write it; run: chmod o-w"
    assert mistakes(main) == [f"{path}: {problem} {path}"]
    path.chmod(0o644)
    directory = main.with_suffix(".d")
    directory.chmod(0o1777)
    assert mistakes(main) == [f"{directory}: {problem} {directory}"]


@ROOT_ALONE
def test_what_another_user_owns_counts_for_nothing(main: Path) -> None:
    path = add(main, "a.toml", "canary.interval = 7")
    os.chown(path, 65534, 65534)
    problem = "belongs to user 65534, who may not configure this; run: chown root"
    assert mistakes(main) == [f"{path}: {problem} {path}"]
    directory = main.with_suffix(".d")
    os.chown(directory, 65534, 65534)
    assert mistakes(main) == [f"{directory}: {problem} {directory}"]
    os.chown(main, 65534, 65534)  # who owns the main file decides anyway
    assert load(main, {}).canary.interval == 7
