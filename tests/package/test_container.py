"""The DaemonSet's pod, as far as it can be had without a cluster: the package on a tree of Debian,
with the mounts, namespaces and capabilities that the manifest asks for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import cgroup_root, remove_cgroup
from trees import tree

from monitor.provoke import table as provoke

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "systemd/kubernetes"
POD = yaml.safe_load((FOLDER / "daemonset.yaml").read_text("utf-8"))["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
DETACH = yaml.safe_load((FOLDER / "detach.yaml").read_text("utf-8"))["spec"]["template"]["spec"]
SECURITY = CONTAINER["securityContext"]
READY_SECONDS = 60.0
MACHINE_ID = "0f3c5a9b2d7e4816a1c9e0d4b5f60718"
Event = dict[str, Any]
Spec = dict[str, Any]

# What a container runtime does. The package is installed as the Containerfile does it, its
# dependencies being there.
_RUN = """
set -eu
lower=$1 place=$2 package=$3 capabilities=$4; shift 4
mount -t tmpfs none $place
mkdir $place/upper $place/work $place/root
mount -t overlay -o lowerdir=$lower,upperdir=$place/upper,workdir=$place/work none $place/root
cd $place/root
cp $package tmp/package.deb
mount -t proc proc proc
chroot . dpkg --install /tmp/package.deb >&2
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero random urandom; do
    : >dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir -p var/lib/seal-monitor
# A node that systemd has booted has it mounted.
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
MOUNTS
mount -o remount,ro,bind $place/root 2>/dev/null || mount -o remount,ro $place/root
exec chroot . setpriv --no-new-privs --bounding-set=$capabilities --inh-caps=$capabilities \
    /usr/bin/seal-monitor "$@"
"""


def mounts(node: Path, pod: Spec, container: Spec) -> str:
    """Mounts as in the manifest. In `node` are what the node has under these names: its state, its
    machine id, and, where they are there, the secret and its bpffs.
    """
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    lines = []
    for mount in container["volumeMounts"]:
        target = mount["mountPath"].lstrip("/")
        volume = volumes[mount["name"]]
        source = volume.get("hostPath", {}).get("path")
        if mount["name"] == "run":  # the node has no other monitor
            lines.append(f"mkdir -p {target}\nmount -t tmpfs -o mode=755 none {target}")
            continue
        own = node / mount["name"]
        if own.exists():
            source = str(own)
        if own.is_file():
            lines.append(f": >{target}")
        if source is None:
            mode = "rw" if "emptyDir" in volume else "ro"
            lines.append(f"mount -t tmpfs -o {mode} none {target}")
            continue
        lines.append(f"mount --rbind {source} {target}")
        if mount.get("readOnly"):
            lines.append(f"mount -o remount,ro,bind {target} || :")
    return "\n".join(lines)


class Pod:
    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.output = output

    def events(self) -> list[Event]:
        text = self.output.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1].splitlines()
        return [json.loads(line) for line in whole if line.startswith("{")]

    def wait_for(self, **wanted: object) -> Event:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            for event in self.events():
                if wanted.items() <= event.items():
                    return event
            assert self.process.poll() is None, self.output.with_name("errors").read_text()
            time.sleep(0.05)
        raise AssertionError(f"no such event: {self.events()}")


def contained(node: Path, package: Path, place: Path, pod: Spec, container: Spec) -> list[str]:
    """The command of a container, but for its arguments. `place`: a directory for what it makes."""
    place.mkdir(parents=True)
    asked = container["securityContext"]["capabilities"].get("add", [])
    capabilities = ",".join(("-all", *(f"+{name.lower()}" for name in asked)))
    return [
        *("env", "-u", "SEAL_MONITOR_RUNTIME_DIRECTORY"),  # that of the tests
        *("unshare", "--mount", "--propagation=private", "--cgroup", "--ipc", "--uts"),
        *("sh", "-c", _RUN.replace("MOUNTS", mounts(node, pod, container)), "sh"),
        *(str(tree("trixie")), str(place), str(package), capabilities),
    ]


@contextmanager
def run_pod(node: Path, package: Path, name: str = "pod") -> Iterator[Pod]:
    """`name`: of a directory for what it makes."""
    folder = node / name
    output = folder / "events"
    (node / "state").mkdir(exist_ok=True)
    (node / "machine-id").write_text(f"{MACHINE_ID}\n")
    command = [
        *contained(node, package, folder / "place", POD, CONTAINER),
        *CONTAINER["args"][:-1],
        "--web.listen-address=127.0.0.1:0",
    ]
    with output.open("wb") as events, (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(command, stdout=events, stderr=errors)
        try:
            yield Pod(process, output)
        finally:
            process.kill()
            process.wait()


@contextmanager
def victims_cgroup(pod_uid: str, container: str) -> Iterator[Path]:
    """As the kubelet and containerd name those of a pod's container, with systemd's driver."""
    root = cgroup_root()
    if root is None:
        pytest.skip("cgroup2 is not mounted")
    names = (
        f"seal-monitor-test-{os.getpid()}-kubepods.slice",
        f"kubepods-pod{pod_uid.replace('-', '_')}.slice",
        f"cri-containerd-{container}.scope",
    )
    made: list[Path] = []
    try:
        for name in names:
            root /= name
            root.mkdir()
            made.append(root)
        yield root
    finally:
        for path in reversed(made):
            remove_cgroup(path)


def test_the_manifest_and_the_image_go_together() -> None:
    image = (FOLDER / "Containerfile").read_text("utf-8")
    assert re.findall(r'^ENTRYPOINT \["(.*)"\]$', image, re.MULTILINE) == ["/usr/bin/seal-monitor"]
    assert SECURITY["capabilities"] == {
        "drop": ["ALL"],
        "add": ["BPF", "PERFMON", "DAC_READ_SEARCH", "SYS_PTRACE"],
    }
    unit = (ROOT / "systemd/seal-monitor.service").read_text("utf-8")
    (granted,) = re.findall("^AmbientCapabilities=(.*)$", unit, re.MULTILINE)
    asked = {f"CAP_{name}" for name in SECURITY["capabilities"]["add"]}
    assert asked == set(granted.split())
    assert (SECURITY["privileged"], SECURITY["readOnlyRootFilesystem"]) == (False, True)
    named = {volume["name"] for volume in POD["volumes"]}
    assert named == {mount["name"] for mount in CONTAINER["volumeMounts"]}
    (port,) = CONTAINER["ports"]
    assert CONTAINER["args"][-1] == f"--web.listen-address=0.0.0.0:{port['containerPort']}"


@pytest.fixture(scope="module")
def package(build_directory: Path) -> Path:
    folder = build_directory / "pods"
    folder.mkdir()
    done = subprocess.run(
        [ROOT / "systemd/debian/build-package", folder], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (package,) = folder.glob("*.deb")
    return package


@pytest.fixture
def node(build_directory: Path, request: pytest.FixtureRequest) -> Path:
    folder: Path = build_directory / request.function.__name__
    folder.mkdir()
    return folder


def test_a_pod_reports_another_pods_violation(node: Path, package: Path, require_bpf: None) -> None:
    pod_uid, container = str(uuid.uuid4()), os.urandom(32).hex()
    with run_pod(node, package) as pod:
        started = pod.wait_for(event="started")
        assert started["details"]["notes"] == []
        assert started["host"]["id"] == MACHINE_ID
        status = Path(f"/proc/{pod.process.pid}/status").read_text()
        effective = re.findall(r"^CapEff:\s+(\w+)$", status, re.MULTILINE)
        assert int(effective[0], 16) == 1 << 2 | 1 << 19  # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE
        with victims_cgroup(pod_uid, container) as cgroup:
            with provoke.run("mprotect", wait=True) as victim:
                (cgroup / "cgroup.procs").write_text(str(victim.pid))
                victim.communicate("\n")
            denial = pod.wait_for(kind="denial")
        assert (denial["operation"], denial["verdict"]) == ("mprotect", "sealed")
        assert denial["process"]["executable"] == os.path.realpath(sys.executable)
        assert denial["process"]["pid"] == victim.pid
        assert (denial["workload"]["pod_uid"], denial["workload"]["container_id"]) == (
            pod_uid,
            container,
        )
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(30) == 0
        assert pod.events()[-1]["event"] == "stopped"
    assert (node / "state/incidents.db").stat().st_size > 0


def settings(node: Path) -> None:
    """The secret, by the command that docs/install.md has."""
    (text,) = re.findall(
        r"^printf '(.*)' >config.toml$", (ROOT / "docs/install.md").read_text("utf-8"), re.MULTILINE
    )
    (node / "settings").mkdir()
    (node / "settings/config.toml").write_text(text.replace("\\n", "\n"))


@pytest.fixture
def pinned(node: Path) -> Iterator[Path]:
    """Where pods of this node pin."""
    settings(node)
    bpffs = node / "bpf"
    bpffs.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True)
    yield bpffs / "seal-monitor"
    for each in bpffs.glob("seal-monitor/*"):
        each.unlink()
    subprocess.run(["umount", "--lazy", bpffs], check=True)


def test_a_pod_that_is_killed_or_updated_loses_nothing_where_the_node_keeps_it(
    node: Path, package: Path, pinned: Path, require_bpf: None
) -> None:
    seen: list[int] = []
    for turn, end in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGTERM)):
        with run_pod(node, package, str(turn)) as pod:
            started = pod.wait_for(event="started")
            assert started["details"]["notes"] == []
            assert started["details"]["kept_by"] == "/sys/fs/bpf/seal-monitor"
            if seen:
                assert started["details"]["resumed"] is not None, started
                assert started["blind_seconds"] == 0
                denial = pod.wait_for(kind="denial")
                assert (denial["operation"], denial["process"]["pid"]) == ("munmap", seen[-1])
            pod.process.send_signal(end)
            assert pod.process.wait(30) == (0 if end == signal.SIGTERM else -end)
        assert len(list(pinned.iterdir())) > 20
        with provoke.run("munmap") as victim:  # while there is none
            victim.communicate()
        seen.append(victim.pid)


def test_the_other_manifest_ends_what_a_node_keeps(
    node: Path, package: Path, pinned: Path, require_bpf: None
) -> None:
    """Without a capability, as it asks for none."""
    (container,) = DETACH["initContainers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["args"][1] == settings_pin(node)

    def detach(name: str) -> subprocess.CompletedProcess[str]:
        command = contained(node, package, node / name / "place", DETACH, container)
        return subprocess.run(
            [*command, *container["args"]], check=False, capture_output=True, text=True
        )

    with run_pod(node, package) as pod:
        pod.wait_for(event="started")
        refused = detach("early")
        assert refused.returncode == 1
        assert refused.stderr.endswith("a monitor uses /sys/fs/bpf/seal-monitor; stop it first\n")
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(30) == 0
    count = len(list(pinned.iterdir()))
    done = detach("late")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{count} maps, programs and links are let go, last read 0:0")
    assert list(pinned.iterdir()) == []


def settings_pin(node: Path) -> str:
    found: str = tomllib.loads((node / "settings/config.toml").read_text())["state"]["pin"]
    return found
