"""Debian's kernels for the matrix: which ones are wanted, and where they lie once fetched.

Versions leave the mirrors as newer ones come, so this table names lines of kernels: the newest
release of a line that any suite offers is taken. Mirror and keyring are those that the machine's
own apt uses; apt runs with other directories and leaves the host's lists as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

__all__ = [
    "LINES",
    "OTHERS",
    "Kernel",
    "KernelError",
    "Line",
    "apt_settings",
    "cache_directory",
    "choose",
    "kernels",
    "mirror",
]

FLAVOUR = "cloud-amd64"  # the smallest image, and what virtual machines run
SUITES = (
    *("bookworm", "bookworm-backports", "trixie", "trixie-backports"),
    *("forky", "forky-backports", "sid", "experimental"),
)
OTHER_SUITES = ("trixie", "trixie-backports")  # for other processors
FRESH_SECONDS = 86_400
KEYRING_PACKAGE = "debian-archive-keyring"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KEPT = ("vmlinuz", "config")
PARTS = ("image", "binary", "base")  # newer releases have what is kept in several packages

_FLAVOUR = re.compile(r"-(?:cloud-)?(?:amd64|(arm64))(?:-16k)?$")
_MAIN = re.compile(r"'(\S+)/dists/([^/]+)/main/")
_NOT_OFFERED = re.compile(r"The repository '\S+ (\S+) Release' does not have a Release file")


class KernelError(RuntimeError):
    """A kernel that is offered cannot be fetched."""


@dataclass(frozen=True)
class Line:
    """One kernel is wanted of these: of the first series (major.minor) that is offered.

    No series: of the newest of all.
    """

    name: str
    series: tuple[str, ...] = ()
    has_mseal: bool = True


LINES = (
    Line("6.1", ("6.1",), has_mseal=False),
    Line("6.12", ("6.12",)),
    Line("6.16/6.17", ("6.16", "6.17")),  # 6.16 has guard regions and still the first seal bit
    Line("6.18/6.19", ("6.19", "6.18")),  # 6.19 turned the flags of a mapping into a union
    Line("newest"),
)
# Those of other processors, by flavour. The pages of the second are of 16 KiB.
OTHERS = {
    "cloud-arm64": (Line("6.12 arm64", ("6.12",)), Line("newest arm64")),
    "arm64-16k": (Line("6.12 arm64, 16 KiB", ("6.12",)),),
}


@dataclass(frozen=True)
class Kernel:
    """A line's kernel. `note` says where it is not what was wanted; then `image` may be empty."""

    line: str
    has_mseal: bool
    release: str
    image: str
    note: str = ""

    @property
    def architecture(self) -> str:
        """Debian's name of the processor that it is for."""
        found = _FLAVOUR.search(self.release)
        return (found and found[1]) or "amd64"


# ---- Which ---------------------------------------------------------------------------------------


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", _FLAVOUR.sub("", release)))


def _newest(releases: Iterable[str], series: str = "") -> str:
    """The newest release of a series, or of all; empty where no suite has one."""
    wanted = _numbers(series)
    found = [release for release in releases if _numbers(release)[: len(wanted)] == wanted]
    return max(found, key=_numbers, default="")


def _wanted(line: Line, releases: Sequence[str]) -> str:
    for series in line.series or ("",):
        if release := _newest(releases, series):
            return release
    return ""


def choose(lines: Sequence[Line], releases: Sequence[str]) -> list[Kernel]:
    """A kernel for each line, without an image yet.

    Where no suite offers a line any more, the next newer series that no other line has takes its
    place. A kernel without mseal has no replacement.
    """
    found = {line: _wanted(line, releases) for line in lines}
    taken = {_numbers(release)[:2] for release in found.values()}
    free = sorted({_numbers(release)[:2] for release in releases} - taken)
    chosen = []
    for line, release in found.items():
        note, instead = "", release
        if not release:
            note = f"no suite offers {line.name} any more"
            newer = [each for each in free if line.series and each > _numbers(line.series[0])]
            if newer and line.has_mseal:
                free.remove(newer[0])
                instead = _newest(releases, ".".join(map(str, newer[0])))
                note += f"; {instead} instead"
        chosen.append(Kernel(line.name, line.has_mseal, instead, "", note))
    return chosen


# ---- apt -----------------------------------------------------------------------------------------


class _Apt:
    """apt with its lists and sources in `directory`; the host's are only read."""

    def __init__(self, directory: Path, architecture: str) -> None:
        self._directory = directory
        self._sources = directory / "sources.list"
        for name in ("state/lists/partial", "cache/archives/partial", "keyring"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        status = directory / "status"
        status.touch()
        self._options = (
            *("-o", f"APT::Architecture={architecture}"),
            *("-o", f"APT::Architectures={architecture}"),
            *("-o", f"Dir::State={directory / 'state'}"),
            *("-o", f"Dir::State::status={status}"),
            *("-o", f"Dir::Cache={directory / 'cache'}"),
            *("-o", f"Dir::Etc::sourcelist={self._sources}"),
            *("-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", "Acquire::Languages=none"),
            *("-o", "APT::Update::Error-Mode=any"),  # else an outage leaves the old lists, silently
            *("-o", "APT::Sandbox::User=root"),  # only the caller can read the cache
        )

    def _run(
        self, command: str, *words: str, check: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [command, *self._options, *words],
            capture_output=True,
            text=True,
            cwd=cwd,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if check and done.returncode:
            raise KernelError(f"{command} {' '.join(words)} failed:\n{done.stderr.strip()}")
        return done

    def update(self, mirror: str, suites: Sequence[str], keyring: Path = KEYRING) -> None:
        """Lists of these suites. A suite that the mirror does not have is left out."""
        ours = keyring
        while True:
            self._sources.write_text(
                "".join(f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in suites)
            )
            done = self._run("apt-get", "update", check=False)
            if not done.returncode:
                return
            absent = set(_NOT_OFFERED.findall(done.stderr))
            if absent and absent < set(suites):
                suites = [suite for suite in suites if suite not in absent]
            elif "NO_PUBKEY" in done.stderr and keyring == ours:
                keyring = self._newer_keyring()
            else:
                raise KernelError(f"apt-get update failed:\n{done.stderr.strip()}")

    def _newer_keyring(self) -> Path:
        """The keyring of the newest suite whose signature the host's keyring proves."""
        directory = self._directory / "keyring"
        self.download([KEYRING_PACKAGE], directory)
        (package,) = directory.glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, directory], check=True)
        return directory / KEYRING.relative_to("/")

    def names(self, prefix: str) -> list[str]:
        return self._run("apt-cache", "pkgnames", prefix).stdout.split()

    def download(self, packages: Sequence[str], directory: Path) -> None:
        """Their newest versions, as files; apt has checked them against the signed lists."""
        self._run("apt-get", "download", *packages, cwd=directory)


def mirror() -> str:
    """The mirror of Debian that this machine's apt uses; also known without lists."""
    listed = subprocess.run(
        ["apt-get", "update", "--print-uris"], capture_output=True, text=True, check=True
    ).stdout
    for mirror, suite in _MAIN.findall(listed):
        if suite in SUITES:
            return str(mirror)
    raise KernelError(f"apt has no source for main of any of {', '.join(SUITES)}")


def apt_settings(directory: Path) -> Path:
    """How this machine's apt fetches, as a file for another one: proxies, time limits, dates."""
    dumped = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True)
    lines = [line for line in dumped.stdout.splitlines() if line.startswith("Acquire::")]
    path = directory / "apt.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


# ---- Fetching ------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """Where kernels are kept between runs: outside of the checkout, that of the user."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SEAL_MONITOR_CACHE") or base / "seal-monitor") / "kernels"


def _unpack(package: Path, release: str, directory: Path) -> None:
    """Keep a package's kernel image and configuration, wherever in it they lie."""
    names = {f"{kept}-{release}": kept for kept in KEPT} | {kept: kept for kept in KEPT}
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        for member in archive:
            kept = names.get(Path(member.name).name)
            if kept and member.isfile() and (content := archive.extractfile(member)):
                with (directory / kept).open("wb") as file:
                    shutil.copyfileobj(content, file)
    if process.returncode:
        raise KernelError(f"{package.name} cannot be unpacked: dpkg-deb ended with an error")


def _fetch(apt: _Apt, releases: Sequence[str], offered: Sequence[str], cache: Path) -> None:
    """Put the images of `releases` into the cache, all or none."""
    packages = {
        release: [name for part in PARTS if (name := f"linux-{part}-{release}") in offered]
        for release in releases
    }
    with tempfile.TemporaryDirectory(dir=cache) as name:
        directory = Path(name)
        apt.download([package for names in packages.values() for package in names], directory)
        for release, names in packages.items():
            unpacked = directory / release
            unpacked.mkdir()
            for package in names:
                (file,) = directory.glob(f"{package}_*.deb")
                _unpack(file, release, unpacked)
            if not (unpacked / "vmlinuz").exists():
                raise KernelError(f"no vmlinuz in the packages {', '.join(names)}")
        for release in releases:
            shutil.rmtree(cache / release, ignore_errors=True)
            (directory / release).rename(cache / release)


def _image(cache: Path, release: str) -> Path:
    return cache / release / "vmlinuz"


def _from_list(path: Path, lines: Sequence[Line]) -> list[Kernel]:
    """What an earlier run has chosen, if that is not long ago and all still there."""
    if not path.exists() or time.time() - path.stat().st_mtime > FRESH_SECONDS:
        return []
    found = [Kernel(**entry) for entry in json.loads(path.read_text())]
    there = all(Path(kernel.image).exists() for kernel in found if kernel.release)
    return (
        found
        if there and [kernel.line for kernel in found] == [line.name for line in lines]
        else []
    )


def kernels(
    lines: Sequence[Line] = LINES, cache: Path | None = None, flavour: str = FLAVOUR
) -> list[Kernel]:
    """A kernel for each line, fetched where it is not at hand; once a day the mirror is asked.

    Raises KernelError for a kernel that is offered and cannot be fetched.
    """
    cache = cache or cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    listed = cache / f"kernels-{flavour}.json"
    image_of = re.compile(rf"linux-(?:image|binary)-(\d[^-]*(?:-\d+)?-{flavour})")
    architecture = Kernel("", True, f"-{flavour}", "").architecture
    if found := _from_list(listed, lines):
        return found
    with tempfile.TemporaryDirectory(dir=cache) as name:
        apt = _Apt(Path(name), architecture)
        apt.update(mirror(), SUITES if flavour == FLAVOUR else OTHER_SUITES)
        offered = apt.names("linux-")
        releases = sorted({match[1] for match in map(image_of.fullmatch, offered) if match})
        found = [
            replace(kernel, image=str(_image(cache, kernel.release))) if kernel.release else kernel
            for kernel in choose(lines, releases)
        ]
        wanted = {kernel.release for kernel in found if kernel.release}
        if missing := [each for each in sorted(wanted) if not _image(cache, each).exists()]:
            _fetch(apt, missing, offered, cache)
    for image in cache.glob(f"[0-9]*[0-9]-{flavour}/vmlinuz"):
        if image.parent.name not in wanted:
            shutil.rmtree(image.parent)
    written = listed.with_suffix(".new")
    written.write_text(json.dumps([asdict(kernel) for kernel in found], indent=1))
    written.replace(listed)
    return found


if __name__ == "__main__":
    try:
        for flavour, lines in ({FLAVOUR: LINES} | OTHERS).items():
            for kernel in kernels(lines, flavour=flavour):
                print(kernel.line, kernel.release, kernel.image, kernel.note, sep="\t")
    except KernelError as error:
        sys.exit(f"kernels: {error}")
