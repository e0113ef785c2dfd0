"""Forbidden things that a proof tries inside a box; foreign code could as well.

    python3 -I -S -c SOURCE CONFIG

CONFIG is JSON: host_file, host_folder, port, abstract, server, memory_bytes, disk_bytes, processes. Prints a line of
JSON for each: its name, and "denied" or what happened. The last may end all by a limit.
"""

import ctypes
import json
import os
import socket
import sys


def main():
    config = json.loads(sys.argv[1])
    for probe in PROBES:
        try:
            came = probe(config)
        except (OSError, MemoryError):
            came = "denied"
        print(json.dumps([probe.__name__, came]), flush=True)


def read_host_file(config):
    with open(config["host_file"], "rb") as file:
        return f"read {file.read()!r}"


def write_host_folder(config):
    with open(os.path.join(config["host_folder"], "written"), "wb"):
        return "wrote a file of the host"


def connect_loopback(config):
    with socket.create_connection(("127.0.0.1", config["port"]), 1):
        return "connected"


def connect_abstract(config):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + config["abstract"])
        return "connected"


def signal_server(config):
    os.kill(config["server"], 0)
    return f"process {config['server']} can be signalled"


def signal_parent(config):
    if os.getppid() == 1:
        os.kill(1, 9)  # the first process of a namespace ignores signals from inside
        raise PermissionError
    os.kill(os.getppid(), 0)
    return "the parent can be signalled"


def read_server(config):
    with open(f"/proc/{config['server']}/environ", "rb") as file:
        file.read()
        return "read the server's environment"


def read_init(config):
    with open(f"/proc/{os.getppid()}/mem", "rb"):
        return "opened the memory of the program in the box"


def trace(config):
    """In a child, which a tracer would stop."""
    child = os.fork()
    if not child:
        os._exit(int(libc.ptrace(0, 0, 0, 0) < 0))
    return failing("ptrace", -os.waitpid(child, 0)[1])


def new_namespace(config):
    return failing("unshare", libc.unshare(0x10000000))


def new_ring(config):
    return failing("io_uring_setup", libc.syscall(425, 1, ctypes.create_string_buffer(256)))


def new_key(config):
    return failing("keyctl", libc.syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], 0, -3, 0))


def failing(name, result):
    if result >= 0:
        return f"{name} gave {result}"
    raise PermissionError


def over_memory(config):
    """A child takes four times the memory of the box."""
    child = os.fork()
    if not child:
        try:
            held = [bytearray(1 << 20) for _ in range(4 * config["memory_bytes"] >> 20)]
            os._exit(0 if held else 1)
        finally:
            os._exit(1)
    return failing("memory", -os.waitpid(child, 0)[1])


def over_disk(config):
    """A file larger than the box's disk."""
    size = 0
    try:
        with open("large", "wb", buffering=0) as file:
            while size <= config["disk_bytes"]:
                size += file.write(bytes(1 << 20))
    finally:
        os.unlink("large")
    return f"wrote {size} bytes"


def over_processes(config):
    """More children than the box may have."""
    children = []
    reading, writing = os.pipe()
    try:
        while len(children) <= config["processes"]:
            child = os.fork()
            if not child:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            children.append(child)
        return f"{len(children)} children"
    finally:
        os.close(writing)
        for child in children:
            os.waitpid(child, 0)


libc = ctypes.CDLL(None)
PROBES = (
    read_host_file, write_host_folder, connect_loopback, connect_abstract, signal_server, signal_parent, read_server,
    read_init, trace, new_namespace, new_ring, new_key, over_disk, over_processes, over_memory,
)  # fmt: skip

if __name__ == "__main__":
    main()
