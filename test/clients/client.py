"""Checks a keysidecar from Python. For your own program:

    pip install grpcio grpcio-tools grpcio-status
    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/keysidecar/v1/seal.proto

    channel = grpc.insecure_channel("unix:///run/keysidecar/keysidecar.sock")
    keysidecar = SealServiceStub(channel)
    context = {"table": "invoices", "column": "notes", "id": "4711"}
    request = SealRequest(tenant="acme", plaintext=b"data", encryption_context=context)
    sealed = keysidecar.Seal(request, timeout=6).sealed
    request = UnsealRequest(tenant="acme", sealed=sealed, encryption_context=context)
    plaintext = keysidecar.Unseal(request, timeout=6).plaintext

Keep the channel: it connects again by itself. Give every call a timeout: a data key that is not in memory may take 5 s.
Decide by the reason of an error (docs/errors.md), which Refusal shows how to read, and never by its text.

Usage: client.py DIR PEER...           checks everything, and opens what the peers have sealed
       client.py --open DIR PEER...    the latter only
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from urllib.parse import quote

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status
from keysidecar.v1.seal_pb2 import SealRequest, UnsealRequest
from keysidecar.v1.seal_pb2_grpc import SealServiceStub

CONTEXT = {"Straße": "Größe 12 µm", "名前": "値", "key": "🔑", "empty": ""}
SIZES = [0, 1, 65536, 1048576]
TIMEOUT = 6
ME = "python"


class Refusal:
    """What the sidecar says in an error besides its code: a reason, and when to try again."""

    def __init__(self, error):
        self.code = error.code()
        self.reason = self.request_id = self.retry_after = None
        status = rpc_status.from_call(error)  # reads grpc-status-details-bin
        for detail in status.details if status else []:
            info, retry = ErrorInfo(), RetryInfo()
            if detail.Unpack(info) and info.domain == "keysidecar":
                self.reason, self.request_id = info.reason, info.metadata["request_id"]
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        self.trailers = dict(error.trailing_metadata() or ())


checks = 0


def check(what, got, want=True):
    global checks
    checks += 1
    if got != want:
        sys.exit(f"client.py: {what}: got {got!r:.200}, want {want!r:.200}")


def refusal(what, call, *args, **kwargs):
    """Returns the Refusal of a call that has to end with one."""
    try:
        call(*args, **{"timeout": TIMEOUT, **kwargs})
    except grpc.RpcError as error:
        return Refusal(error)
    sys.exit(f"client.py: {what}: not refused")


class Client:
    """SealService and Health over one channel with a connection of its own."""

    def __init__(self, target, **options):
        options = {"grpc." + name: value for name, value in options.items()}
        options["grpc.use_local_subchannel_pool"] = 1
        channel = grpc.insecure_channel(target, options=list(options.items()))
        self.rpc, self.health = SealServiceStub(channel), HealthStub(channel)

    def seal(self, plaintext, tenant="acme", context=CONTEXT, **kwargs):
        request = SealRequest(tenant=tenant, plaintext=plaintext, encryption_context=context)
        return self.rpc.Seal(request, **{"timeout": TIMEOUT, **kwargs})

    def unseal(self, sealed, tenant="acme", context=CONTEXT, **kwargs):
        request = UnsealRequest(tenant=tenant, sealed=sealed, encryption_context=context)
        return self.rpc.Unseal(request, **{"timeout": TIMEOUT, **kwargs}).plaintext

    def status(self, service):
        return self.health.Check(HealthCheckRequest(service=service), timeout=TIMEOUT).status


def plaintext(folder, size):
    data = (folder / "data" / f"plain-{size}").read_bytes()
    check(f"length of plain-{size}", len(data), size)
    return data


def round_trips(folder, socket):
    """Every way to write the target, and every :authority: of itself grpcio sends the path, percent-encoded."""
    encoded = quote(socket.lstrip("/"), safe="")
    clients = {
        "unix:/path": Client(f"unix:{socket}"),
        "unix:///path": Client(f"unix://{socket}"),
        "authority localhost": Client(f"unix:{socket}", default_authority="localhost"),
        "authority path": Client(f"unix:{socket}", default_authority=encoded),
        "authority /path": Client(f"unix:{socket}", default_authority="%2F" + encoded),
    }
    for name, client in clients.items():
        for size in SIZES:
            data = plaintext(folder, size)
            answer = client.seal(data)
            check(f"{name}: KEK of {size} B", answer.key_info.kek_ref, "acme")
            check(f"{name}: DEK ID of {size} B", len(answer.key_info.dek_id), 16)
            check(f"{name}: {size} B opened", client.unseal(answer.sealed) == data)
            (folder / "data" / f"{ME}-{size}").write_bytes(answer.sealed)


def open_peers(folder, client, peers):
    for peer in peers:
        for size in SIZES:
            sealed = (folder / "data" / f"{peer}-{size}").read_bytes()
            check(f"{peer}'s {size} B opened", client.unseal(sealed) == plaintext(folder, size))


def errors(client):
    sealed = client.seal(b"data", context={"name": "Zo\u00eb"}).sealed
    check("right context", client.unseal(sealed, context={"name": "Zo\u00eb"}), b"data")
    wrong = {"decomposed": {"name": "Zoe\u0308"}, "more": {"name": "Zo\u00eb", "a": ""}, "none": {}}
    for name, context in wrong.items():
        r = refusal(name, client.unseal, sealed, context=context)
        check(f"{name} context", (r.code, r.reason), (grpc.StatusCode.INVALID_ARGUMENT, "AUTHENTICATION_FAILED"))
        check(f"{name} context: request id", r.request_id and r.request_id == r.trailers["request_id"])
        check(f"{name} context: retry", r.retry_after, None)
    for tenant in ["denied", "absent"]:
        r = refusal(tenant, client.seal, b"", tenant=tenant)
        check(f"{tenant} tenant", (r.code, r.reason), (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"))
    for size, reason in {1048577: "TOO_LARGE", 4 << 20: None}.items():  # the second is gRPC's own answer
        r = refusal(size, client.seal, bytes(size))
        check(f"{size} B", (r.code, r.reason, r.retry_after), (grpc.StatusCode.RESOURCE_EXHAUSTED, reason, None))
    check("open after errors", client.unseal(client.seal(b"data").sealed), b"data")


def answers(folder, sidecar, reason):
    """Counts the calls that a sidecar's log says it refused for a reason."""
    lines = (folder / sidecar / "log").read_text().splitlines()
    return sum(json.loads(line).get("reason") == reason for line in lines)


def rates(folder):
    """Over a rate: refused at once, told when to come back, and not repeated by a retryPolicy."""
    policy = {"maxAttempts": 4, "initialBackoff": "0.02s", "maxBackoff": "0.05s", "backoffMultiplier": 1}
    policy["retryableStatusCodes"] = ["RESOURCE_EXHAUSTED", "PERMISSION_DENIED"]
    config = json.dumps({"methodConfig": [{"name": [{"service": "keysidecar.v1.SealService"}], "retryPolicy": policy}]})
    client = Client(f"unix:{folder}/main/s", service_config=config)
    before = answers(folder, "main", "PERMISSION_DENIED")
    refusal("denied, with retries", client.seal, b"", tenant="denied")
    check("the retryPolicy works", answers(folder, "main", "PERMISSION_DENIED") - before, 4)

    limited = Client(f"unix:{folder}/limited/s", service_config=config)
    for sidecar, client, tenant in ("main", client, "slow-" + ME), ("limited", limited, "acme"):
        with contextlib.suppress(grpc.RpcError):
            client.seal(b"", tenant=tenant)  # uses what is left of the burst
        for size in 0, 1048576:
            before = answers(folder, sidecar, "RATE_LIMITED")
            r = refusal("over the rate", client.seal, bytes(size), tenant=tenant)
            check(f"{sidecar}: over the rate", (r.code, r.reason), (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"))
            check(f"{sidecar}: RetryInfo {r.retry_after}", 0 < r.retry_after <= 1000)
            check(f"{sidecar}: pushback", r.trailers.get("grpc-retry-pushback-ms"), "-1")
            check(f"{sidecar}: answers", answers(folder, sidecar, "RATE_LIMITED") - before, 1)
    check("health over the rate", limited.status(""), HealthCheckResponse.SERVING)


def health(client):
    for service in ["", "keysidecar.v1.SealService"]:
        check(f"health of {service!r}", client.status(service), HealthCheckResponse.SERVING)
    try:
        client.status("unknown")
        sys.exit("client.py: health of an unknown service: not refused")
    except grpc.RpcError as error:
        check("health of an unknown service", error.code(), grpc.StatusCode.NOT_FOUND)


def concurrent(client):
    def context(i):
        return {"id": str(i)}

    def futures(call, requests):
        calls = [call.future(request, timeout=30) for request in requests]
        return [future.result() for future in calls]

    data = [f"{i} ".encode() * 5000 for i in range(50)]
    seals = [SealRequest(tenant="acme", plaintext=d, encryption_context=context(i)) for i, d in enumerate(data)]
    sealed = [answer.sealed for answer in futures(client.rpc.Seal, seals)]
    unseals = [UnsealRequest(tenant="acme", sealed=s, encryption_context=context(i)) for i, s in enumerate(sealed)]
    check("50 at a time", [answer.plaintext for answer in futures(client.rpc.Unseal, unseals)] == data)


def process_id(folder):
    return int((folder / "main" / "pid").read_text())


def states(pid):
    stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}  # proc(5)


def wait_until(what, true):
    end = time.monotonic() + 20
    while not true():
        if time.monotonic() > end:
            sys.exit(f"client.py: {what}: not within 20 s")
        time.sleep(0.01)


def deadline(folder, client):
    """A sidecar that is stopped holds nobody up, and goes on."""
    pid = process_id(folder)
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until("stopped", lambda: states(pid) == {"T"})
        start = time.monotonic()
        r = refusal("deadline", client.seal, b"data", timeout=0.5)
        took = time.monotonic() - start
    finally:
        os.kill(pid, signal.SIGCONT)
    check("deadline", (r.code, r.reason), (grpc.StatusCode.DEADLINE_EXCEEDED, None))
    check(f"deadline after {took:.1f} s", 0.4 < took < 3)
    check("after the deadline", client.unseal(client.seal(b"data").sealed), b"data")


def restarts(folder, client):
    """The channel finds the sidecar that comes after one that ends, or is killed."""
    for number in signal.SIGTERM, signal.SIGKILL:
        sealed, pid = client.seal(b"data").sealed, process_id(folder)
        os.kill(pid, number)
        wait_until(f"another process after {number.name}", lambda: process_id(folder) != pid)
        try:
            again = client.unseal(sealed, wait_for_ready=True, timeout=20)
        except grpc.RpcError as error:  # the channel had not seen that the connection was lost
            check(f"first call after {number.name}", error.code(), grpc.StatusCode.UNAVAILABLE)
            again = client.unseal(sealed, wait_for_ready=True, timeout=20)
        check(f"after {number.name}", again, b"data")


def main(args):
    only_open = args[0] == "--open"
    folder, peers = Path(args[only_open]), args[only_open + 1 :]
    socket = f"{folder}/main/s"
    client = Client(f"unix:{socket}")
    open_peers(folder, client, peers)
    if not only_open:
        round_trips(folder, socket)
        errors(client)
        health(client)
        rates(folder)
        concurrent(client)
        deadline(folder, client)
        restarts(folder, client)
    print(f"  Python, grpcio {grpc.__version__}: {checks} checks: sealed data of {' and '.join(peers)}" +
          ("" if only_open else ", round trips, authorities, errors, health, rates, 50 at a time, deadline, restarts"))


main(sys.argv[1:])
