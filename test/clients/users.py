"""What hostile and other users' processes do to a keysidecar's socket. Runs as root, and then as the users named.

Usage: users.py flood SOCKET UID SECONDS   calls as fast as it can
       users.py steady SOCKET UID CALLS    one call after the other, none of which may be refused
       users.py mute SOCKET UID COUNT      opens connections that say nothing, until standard input ends
       users.py idle SOCKET UID COUNT      opens connections that ask for nothing, until standard input ends
       users.py two SOCKET UID OTHER       one process, two connections: as UID, who may use acme, and as OTHER, who may not
"""

import contextlib
import os
import select
import socket
import sys
import time
from collections import Counter

import grpc
from keysidecar.v1.seal_pb2 import SealRequest
from keysidecar.v1.seal_pb2_grpc import SealServiceStub

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
REQUEST = SealRequest(tenant="acme", plaintext=b"data")


def become(uid):
    """Makes this process another user's: the kernel tells the sidecar who it was when it connected (unix(7))."""
    os.setgroups([])
    os.setresgid(uid, uid, 0)
    os.setresuid(uid, uid, 0)


def root_again():
    os.setresuid(0, 0, 0)


def connect(path, uid):
    become(uid)
    channel = grpc.insecure_channel(f"unix:{path}", options=OWN_CONNECTION)
    grpc.channel_ready_future(channel).result(timeout=10)
    return SealServiceStub(channel)


def seal(stub):
    try:
        stub.Seal(REQUEST, timeout=6)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def flood(path, uid, seconds):
    stub, start, outcomes = connect(path, uid), time.monotonic(), Counter()
    while time.monotonic() - start < seconds:
        calls = [stub.Seal.future(REQUEST, timeout=6) for _ in range(50)]
        outcomes.update(call.code().name for call in calls)
    print(f"flood: OK {outcomes.pop('OK', 0)}, refused {outcomes.pop('RESOURCE_EXHAUSTED', 0)}, other {dict(outcomes)}")


def steady(path, uid, count):
    stub, slowest = connect(path, uid), 0.0
    for _ in range(count):
        start = time.monotonic()
        outcome = seal(stub)
        slowest = max(slowest, time.monotonic() - start)
        if outcome != "OK":
            sys.exit(f"users.py: steady: {outcome}")
        time.sleep(0.01)
    print(f"steady: OK {count}, slowest {slowest * 1000:.0f} ms")


def mute(path, uid, count):
    hold(path, uid, count, b"")


def idle(path, uid, count):
    hold(path, uid, count, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # RFC 9113, 3.4


def hold(path, uid, count, preface):
    become(uid)
    poll, connections = select.poll(), {}
    for _ in range(count):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        with contextlib.suppress(BrokenPipeError):
            connection.send(preface)
        connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)
    while events := poll.poll(2000):  # until the sidecar has nothing to say for longer than a handshake may take
        for number, _ in events:
            if was_shut(connections[number]):
                poll.unregister(number)
                del connections[number]
    print(f"open {len(connections)}, shut {count - len(connections)}", flush=True)
    sys.stdin.read()


def was_shut(connection):
    try:
        return not connection.recv(4096)
    except ConnectionResetError:
        return True


def two(path, uid, other):
    allowed = connect(path, uid)
    root_again()
    denied = connect(path, other)
    print("two:", seal(allowed), seal(denied), seal(allowed))


name, path, uid, number = sys.argv[1:]
{"flood": flood, "steady": steady, "mute": mute, "idle": idle, "two": two}[name](path, int(uid), int(number))
