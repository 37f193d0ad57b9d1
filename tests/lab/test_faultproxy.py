# SPDX-License-Identifier: Apache-2.0
"""The fault proxy does to an effect what it was told, on a real libvirtd and a real API server, and to no other."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.controlplane import ControlPlane
from tests.lab import Host, Lab
from tests.lab.bare import domain_xml, eventually
from tests.lab.faultproxy import NOT_REACHED
from tests.lab.faultproxy_api import api_target
from tests.lab.rpc import MUTATING, NEWEST

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
PROCEDURES = Path("/usr/share/systemtap/tapset/libvirt_functions.stp")
READING = re.compile(
    r"_get_|_list_|num_of|lookup|_is_|_has_|event|^connect_|^auth_|_stats$|_stats_flags$|_peek$|snapshot_num|"
    r"snapshot_current$|domain_open_|download$|screenshot$|migrate_begin|interface_addresses$|ssh_keys_get$|"
    r"agent_set_response_timeout$"
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    Lab("selftest-proxy").down()
    lab = Lab.up("selftest-proxy", hosts=1)
    try:
        yield lab.hosts[0]
    finally:
        lab.down()


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane("selftest-proxy") as plane:
        yield plane


class Proxy:
    """A fault proxy as a process of its own, and the client whose effects it breaks."""

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        self.log, self.pid_file = folder / "effects.jsonl", folder / "client.pid"
        command = ["-m", "tests.lab.faultproxy", "--log", self.log, "--pid-file", self.pid_file, *arguments]
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.ports: dict[str, int] = json.loads(self.process.stdout.readline())

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def port(self) -> int:
        [port] = self.ports.values()
        return port

    @property
    def uri(self) -> str:
        return f"qemu+tcp://127.0.0.1:{self.port}/system"

    def effects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def client(self, *command: str) -> subprocess.Popen[str]:
        """A process whose pid is in the file before it does anything."""
        known = ["sh", "-c", 'echo $$ >"$0"; exec "$@"', str(self.pid_file), *command]
        return subprocess.Popen(known, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def virsh(self, *arguments: str) -> subprocess.Popen[str]:
        return self.client("virsh", "-q", "-c", self.uri, *arguments)

    def status(self) -> int:
        """End the proxy; its exit status."""
        self.process.terminate()
        return self.process.wait(10)


def to(host: Host) -> tuple[str, str]:
    return "--libvirt", f"0={host.address}:16509"


def new_domain(folder: Path) -> tuple[str, str]:
    """A definition that no host has yet: its UUID and its file."""
    domain = str(uuid.uuid4())
    file = folder / f"{domain}.xml"
    file.write_text(domain_xml(domain))
    return domain, str(file)


def defined(host: Host, domain: str) -> bool:
    return host.definition(domain) is not None


# libvirt


def test_the_table_agrees_with_libvirts_own_list() -> None:
    listed = re.findall(r"proc == (\d+)\) \{\s*procstr = \"([^\"]+)\"", PROCEDURES.read_text())
    start = max(place for place, entry in enumerate(listed) if entry == ("1", "connect_open"))
    procedures = {int(number): name for number, name in listed[start:]}
    assert max(procedures) >= NEWEST
    for number, name in MUTATING.items():
        words = procedures[number].replace("storage_", "").removeprefix("domain_").replace("_", "")
        assert words == name.lower()
    uncounted = {name for number, name in procedures.items() if number <= NEWEST and number not in MUTATING}
    assert {name for name in uncounted if not READING.search(name)} == set()


def test_effects_are_numbered_and_say_what_they_are_for(host: Host, tmp_path: Path) -> None:
    domain, file = new_domain(tmp_path)
    calls = [
        (("define", file), "defineXML", domain),
        (("start", domain), "create", domain),
        (("desc", domain, "words", "--config"), "setMetadata", domain),
        (("vol-create-as", "default", "v.raw", "1M"), "volCreateXML", "default/v.raw"),
        (("vol-resize", "v.raw", "2M", "--pool", "default"), "volResize", "default/v.raw"),
        (("vol-delete", "v.raw", "--pool", "default"), "volDelete", "default/v.raw"),
        (("pool-refresh", "default"), "poolRefresh", "default"),
        (("destroy", domain), "destroy", domain),
        (("undefine", domain), "undefineFlags", domain),
    ]
    with Proxy(tmp_path, *to(host)) as proxy:
        for arguments, _, _ in calls:
            assert proxy.virsh(*arguments).wait(30) == 0
        proxy.virsh("list", "--all").wait(30)
        effects = proxy.effects()
        assert [(effect["what"], effect["object"]) for effect in effects] == [(what, of) for _, what, of in calls]
        assert [effect["n"] for effect in effects] == list(range(1, len(calls) + 1))
        assert {effect["where"] for effect in effects} == {f"{host.address}:16509"}
        assert proxy.status() == 0


def test_kill_before_leaves_nothing_done(host: Host, tmp_path: Path) -> None:
    domain, file = new_domain(tmp_path)
    with Proxy(tmp_path, *to(host), "--at", "defineXML:1", "--do", "kill-before") as proxy:
        assert proxy.virsh("define", file).wait(30) == -signal.SIGKILL
        assert not defined(host, domain)
        assert proxy.status() == 0


def test_kill_after_leaves_it_done(host: Host, tmp_path: Path) -> None:
    domain, file = new_domain(tmp_path)
    with Proxy(tmp_path, *to(host), "--at", "defineXML:1", "--do", "kill-after") as proxy:
        assert proxy.virsh("define", file).wait(30) == -signal.SIGKILL
        assert defined(host, domain)
        assert proxy.status() == 0


def test_drop_reply_does_it_and_shows_an_error(host: Host, tmp_path: Path) -> None:
    domain, file = new_domain(tmp_path)
    with Proxy(tmp_path, *to(host), "--at", "defineXML:1", "--do", "drop-reply") as proxy:
        output = proxy.virsh("define", file).communicate(timeout=30)[0]
        assert "End of file while reading data" in output
        assert defined(host, domain)


def test_delay_does_it_late_though_the_caller_is_dead(host: Host, tmp_path: Path) -> None:
    domain, file = new_domain(tmp_path)
    with Proxy(tmp_path, *to(host), "--at", "defineXML:1", "--do", "delay=8") as proxy:
        client = proxy.virsh("define", file)
        eventually(lambda: proxy.effects(), "the call to arrive")
        client.kill()
        client.wait(5)
        time.sleep(1)
        assert not defined(host, domain)
        eventually(lambda: defined(host, domain), "the call carried out", 30)


def test_delay_holds_up_no_other_call_of_the_connection(host: Host, tmp_path: Path) -> None:
    domain, _ = new_domain(tmp_path)
    with Proxy(tmp_path, *to(host), "--at", "defineXML:1", "--do", "delay=8") as proxy:
        connection = libvirt.open(proxy.uri)
        late = threading.Thread(target=connection.defineXML, args=(domain_xml(domain),))
        late.start()
        eventually(lambda: proxy.effects(), "the call to arrive")
        connection.listAllDomains()
        assert late.is_alive()
        assert not defined(host, domain)
        late.join(60)
        assert defined(host, domain)
        connection.close()


def test_hang_is_never_done_and_never_answered(host: Host, tmp_path: Path) -> None:
    domain, file = new_domain(tmp_path)
    with Proxy(tmp_path, *to(host), "--at", "defineXML:1", "--do", "hang") as proxy:
        client = proxy.virsh("define", file)
        eventually(lambda: proxy.effects(), "the call to arrive")
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(3)
        client.kill()
        client.wait(5)
        assert len(proxy.effects()) == 1
        assert not defined(host, domain)


@pytest.mark.parametrize("by", ["occurrence", "object"])
def test_only_the_effect_that_is_named_is_broken(host: Host, tmp_path: Path, by: str) -> None:
    (first, first_file), (second, second_file) = new_domain(tmp_path), new_domain(tmp_path)
    place = "defineXML:2" if by == "occurrence" else f"define.*{second}:1"
    with Proxy(tmp_path, *to(host), "--at", place, "--do", "kill-before") as proxy:
        assert proxy.virsh("define", first_file).wait(30) == 0
        assert proxy.virsh("define", second_file).wait(30) == -signal.SIGKILL
        assert proxy.virsh("define", second_file).wait(30) == 0
        assert [effect["fault"] for effect in proxy.effects()] == [None, "kill-before", None]
    assert defined(host, first)
    assert defined(host, second)


def test_a_fault_that_was_not_reached_is_told(host: Host, tmp_path: Path) -> None:
    _, file = new_domain(tmp_path)
    with Proxy(tmp_path, *to(host), "--at", "defineXML:2", "--do", "hang") as proxy:
        assert proxy.virsh("define", file).wait(30) == 0
        assert proxy.status() == NOT_REACHED


@pytest.mark.parametrize(
    "arguments",
    [("--at", "x:1"), ("--do", "hang"), ("--at", "x:0", "--do", "hang"), ("--at", "x:1", "--do", "delay"),
     ("--at", "x:1", "--do", "kill-after"), ("--libvirt", "nowhere")],
)  # fmt: skip
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.lab.faultproxy", "--log", str(tmp_path / "log"), *arguments]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 2


# The API server

CREATE = """
import json, sys, urllib.request
body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": sys.argv[2]}}).encode()
url = f"http://127.0.0.1:{sys.argv[1]}/api/v1/namespaces/default/configmaps"
request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status)
"""


def create(proxy: Proxy, name: str) -> subprocess.Popen[str]:
    return proxy.client(sys.executable, "-c", CREATE, str(proxy.port), name)


def exists(plane: ControlPlane, name: str) -> bool:
    return bool(plane.kubectl("get", "configmap", name, "--ignore-not-found").strip())


def get(proxy: Proxy, path: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(f"http://127.0.0.1:{proxy.port}{path}", timeout=60)


@pytest.mark.parametrize(
    ("fault", "status", "done"),
    [("kill-before", -signal.SIGKILL, False), ("kill-after", -signal.SIGKILL, True), ("drop-reply", 1, True)],
)
def test_a_broken_api_write(plane: ControlPlane, tmp_path: Path, fault: str, status: int, done: bool) -> None:
    name = f"c-{uuid.uuid4()}"
    with Proxy(tmp_path, "--api", f"0={plane.kubeconfig}", "--at", f"POST.*{name}:1", "--do", fault) as proxy:
        client = create(proxy, name)
        client.communicate(timeout=30)
        assert client.returncode == status
        assert exists(plane, name) == done
        [effect] = proxy.effects()
        path = "/api/v1/namespaces/default/configmaps"
        assert (effect["what"], effect["object"]) == (f"POST {path}", f"configmaps/default/{name}")
        assert proxy.status() == 0


def test_a_late_api_write_is_done_though_the_caller_is_dead(plane: ControlPlane, tmp_path: Path) -> None:
    name = f"c-{uuid.uuid4()}"
    with Proxy(tmp_path, "--api", f"0={plane.kubeconfig}", "--at", "POST:1", "--do", "delay=8") as proxy:
        client = create(proxy, name)
        eventually(lambda: proxy.effects(), "the request to arrive")
        client.kill()
        client.wait(5)
        assert not exists(plane, name)
        eventually(lambda: exists(plane, name), "the request carried out", 30)


def test_a_hanging_api_write_is_never_done(plane: ControlPlane, tmp_path: Path) -> None:
    name = f"c-{uuid.uuid4()}"
    with Proxy(tmp_path, "--api", f"0={plane.kubeconfig}", "--at", "1", "--do", "hang") as proxy:
        client = create(proxy, name)
        eventually(lambda: proxy.effects(), "the request to arrive")
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(3)
        client.kill()
        client.wait(5)
        assert not exists(plane, name)


def test_reads_watches_and_unbroken_writes_pass(plane: ControlPlane, tmp_path: Path) -> None:
    name = f"c-{uuid.uuid4()}"
    with Proxy(tmp_path, "--api", f"0={plane.kubeconfig}") as proxy:
        path = "/api/v1/namespaces/default/configmaps"
        version = json.load(get(proxy, path))["metadata"]["resourceVersion"]
        watch = get(proxy, f"{path}?watch=1&resourceVersion={version}&timeoutSeconds=60")
        assert create(proxy, name).communicate(timeout=30)[0] == "201\n"
        event = json.loads(watch.readline())
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", name)
        assert [effect["object"] for effect in proxy.effects()] == [f"configmaps/default/{name}"]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api/v1/namespaces/prod", ("namespaces", "namespaces/prod")),
        ("/api/v1/namespaces", ("namespaces", "namespaces/new")),
        ("/api/v1/namespaces/prod/secrets/s", ("secrets", "secrets/prod/s")),
        ("/apis/homeostat.dev/v1alpha1/hypervisors/h1/status", ("hypervisors", "hypervisors/h1")),
        (
            "/apis/homeostat.dev/v1alpha1/namespaces/prod/virtualmachines",
            ("virtualmachines", "virtualmachines/prod/new"),
        ),
        ("/healthz", ("", "")),
    ],
)
def test_a_path_tells_what_it_is_for(path: str, target: tuple[str, str]) -> None:
    assert api_target(path, b'{"metadata": {"name": "new"}}') == target
