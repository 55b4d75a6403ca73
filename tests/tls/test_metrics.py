"""Metrics of a process that has a certificate: given to the cluster's own, and to nobody else."""

import subprocess
import sys
from pathlib import Path

from sllm.tls.identity import Role
from tests.tls.certs import Certs

SCRAPE = """
import http.client, shutil, socket, ssl, sys, urllib.error, urllib.request
from pathlib import Path
from sllm import telemetry
from sllm.tls.cluster import ClusterTls
from sllm.tls.identity import Role

served, mine, foreign, renewed = map(Path, sys.argv[1:])
door = ClusterTls(served, Role.NODE).metrics_door("127.0.0.1")
configured = telemetry.configure(
    "sllm-test", instance_id="one", metrics_port=0, metrics_door=door
)
address = "127.0.0.1", configured.metrics_port
silent = socket.create_connection(address)  # says nothing, and holds nobody up

def read(own, scheme="https"):
    context = ssl.create_default_context(cafile=str(served / "ca.crt"))
    if own:
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
    url = f"{scheme}://127.0.0.1:{address[1]}/metrics"
    try:
        return urllib.request.urlopen(url, timeout=10, context=context).status
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return "refused"

def shown():
    context = ssl.create_default_context(cafile=str(served / "ca.crt"))
    context.load_cert_chain(mine / "tls.crt", mine / "tls.key")
    with context.wrap_socket(socket.create_connection(address), server_hostname="localhost") as one:
        return one.getpeercert()["serialNumber"]

print(read(mine), read(None), read(foreign), read(None, "http"))
before = shown()
for name in ("tls.crt", "tls.key"):
    shutil.copy(renewed / name, served / name)
    print(read(mine))
shown()
print("renewed" if shown() != before else "as it was")
configured.shutdown()
"""


def test_they_take_a_certificate_and_are_renewed(tmp_path: Path) -> None:
    certs = Certs(tmp_path / "ca")
    directories = [
        certs.of(Role.NODE),
        certs.of(Role.METRICS),
        Certs(tmp_path / "foreign").of(Role.METRICS),
        certs.of(Role.NODE, into="renewed"),
    ]
    command = [sys.executable, "-c", SCRAPE, *map(str, directories)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    told = ["200 refused refused refused", "200", "200", "renewed"]
    assert done.stdout.splitlines() == told, done.stderr
