# SPDX-License-Identifier: Apache-2.0
"""The control plane that tests run on: real, alone with its name, gone without a trace, broken on request."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane, ControlPlaneError, GivenControlPlane, control_plane
from tests.controlplane.certificates import write_kubeconfig
from tests.controlplane.ports import is_free
from tests.controlplane.processes import identity


def own(name: str) -> ControlPlane:
    """Return a control plane that no other run of the tests knows."""
    return ControlPlane(f"test-{name}-{os.getpid()}")


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with own("shared") as plane:
        yield plane


def eventually(is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Fail unless it becomes so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def names(plane: ControlPlane, kind: str) -> set[str]:
    return set(plane.kubectl("get", kind, "--output=name").split())


def test_up_down_and_nothing_left(plane: ControlPlane) -> None:
    other = own("other")
    other.up()
    before = [process.pid for process in other.processes]
    other.up()
    pids, taken = [process.pid for process in other.processes], list(other.ports.values())
    assert pids == before
    other.kubectl("create", "configmap", "mine")
    assert "configmap/mine" not in names(plane, "configmap")
    other.down()
    other.down()
    assert not other.directory.exists()
    assert [identity(pid) for pid in pids if pid] == [None, None, None]
    assert all(map(is_free, taken))
    eventually(plane.is_healthy)


def test_two_who_start_the_same_get_the_same() -> None:
    twice = own("twice")
    command = [sys.executable, "-m", "tests.controlplane", "up", "--name", twice.name]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CONTROL_PLANE", "KUBECONFIG_GIVEN")
    }
    try:
        starters = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = [starter.communicate()[1] for starter in starters]
        assert [starter.returncode for starter in starters] == [0, 0]
        assert sum("is already up" in each for each in said) == 1
        eventually(twice.is_healthy)
    finally:
        twice.down()


def test_up_mends_what_has_died(plane: ControlPlane) -> None:
    plane.kubectl("create", "configmap", "survivor")
    for process in plane.processes:
        process.kill()
    assert not plane.is_healthy()
    plane.up()
    eventually(plane.is_healthy)
    assert "configmap/survivor" in names(plane, "configmap")


def test_the_api_server_alone_dies_and_comes_back(plane: ControlPlane) -> None:
    etcd, apiserver, manager = (process.pid for process in plane.processes)
    plane.kill_apiserver()
    with pytest.raises(ControlPlaneError, match="refused"):
        plane.kubectl("get", "namespaces")
    plane.start_apiserver()
    assert (plane.etcd.pid, plane.manager.pid) == (etcd, manager)
    assert plane.apiserver.pid != apiserver
    assert "namespace/default" in names(plane, "namespace")


def test_a_watch_from_before_a_compaction_is_gone(plane: ControlPlane) -> None:
    created = json.loads(plane.kubectl("create", "configmap", "old", "--output=json"))
    version = created["metadata"]["resourceVersion"]
    plane.kubectl("delete", "configmap", "old")
    path = f"/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=10&resourceVersion={version}"
    assert '"DELETED"' in plane.kubectl("get", f"--raw={path}")
    plane.kill_apiserver()
    assert plane.compact() > int(version)
    plane.start_apiserver()
    assert '"code":410' in plane.kubectl("get", f"--raw={path}")


def test_a_rolled_back_store_has_forgotten(plane: ControlPlane) -> None:
    plane.kubectl("create", "configmap", "before")
    plane.save("early")
    plane.kubectl("create", "configmap", "after")
    plane.roll_back("early")
    assert {"configmap/before", "configmap/after"} & names(plane, "configmap") == {"configmap/before"}
    plane.kubectl("create", "configmap", "after")


def test_nothing_is_rolled_back_to_what_was_never_saved(plane: ControlPlane) -> None:
    with pytest.raises(ControlPlaneError, match="nothing saved as 'never'"):
        plane.roll_back("never")
    eventually(plane.is_healthy)


def test_controllers_end_namespaces_and_collect_garbage(plane: ControlPlane) -> None:
    plane.kubectl("create", "namespace", "doomed")
    owner = json.loads(plane.kubectl("create", "configmap", "owner", "--namespace=doomed", "--output=json"))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    metadata = {"name": "owned", "namespace": "doomed", "ownerReferences": [reference]}
    owned = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    plane.kubectl("create", "--filename=-", stdin=json.dumps(owned))
    plane.kubectl("delete", "configmap", "owner", "--namespace=doomed")
    listing = ("get", "configmap", "--namespace=doomed", "--output=name")
    eventually(lambda: "configmap/owned" not in plane.kubectl(*listing))
    plane.kubectl("delete", "namespace", "doomed", "--timeout=60s")
    assert "namespace/doomed" not in names(plane, "namespace")


def allowed(given: GivenControlPlane) -> bool:
    """Whether its user may list config maps."""
    try:
        given.kubectl("get", "configmaps")
    except ControlPlaneError:
        return False
    return True


def test_a_service_account_may_only_do_what_it_is_granted(plane: ControlPlane) -> None:
    plane.kubectl("create", "serviceaccount", "reader")
    plane.kubectl("create", "clusterrole", "reads", "--verb=list,get", "--resource=configmaps")
    plane.kubectl("create", "clusterrolebinding", "reads", "--clusterrole=reads", "--serviceaccount=default:reader")
    given = GivenControlPlane(plane.service_account_kubeconfig("default", "reader"))
    eventually(lambda: allowed(given))  # the API server learns of what is granted by a watch of its own
    with pytest.raises(ControlPlaneError, match="forbidden"):
        given.kubectl("get", "secrets")


def test_a_given_cluster_is_only_looked_at(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_PLANE", "given")
    given = control_plane("any", kubeconfig=str(plane.kubeconfig))
    given.up()
    given.down()
    eventually(plane.is_healthy)


def test_a_given_cluster_that_is_too_old_is_refused(plane: ControlPlane, tmp_path: Path) -> None:
    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"major": "1", "minor": "31", "gitVersion": "v1.31.4"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        path = tmp_path / "old.kubeconfig"
        write_kubeconfig(path, f"http://127.0.0.1:{server.server_port}", plane.directory / "ca.crt", {})
        with pytest.raises(ControlPlaneError, match=r"Kubernetes v1\.31\.4, but 1\.32"):
            GivenControlPlane(path).up()
        server.shutdown()


def test_a_server_that_cannot_start_says_why() -> None:
    broken = own("broken")
    broken.directory.mkdir(parents=True)
    broken.ports  # noqa: B018 - recorded from here on
    (broken.directory / "etcd").write_text("not a directory")
    with pytest.raises(ControlPlaneError, match=r"(?s)etcd died\n.*not a directory"), broken:
        pass
    assert not broken.directory.exists()
