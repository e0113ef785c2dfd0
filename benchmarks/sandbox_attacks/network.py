"""Attacks by sockets: the host listens on loopback, on a path and on an abstract name, and sees who came."""

import ctypes
import os
import socket
import struct

from benchmarks.sandbox_attacks.attack import IS_KILLED, attack
from benchmarks.sandbox_attacks.syscalls import call, in_child, machine_code, only_on_x86


def greeting(kind: socket.socket, address) -> str:
    """What a listener of the host says first."""
    with kind:
        kind.settimeout(2)
        kind.connect(address)
        return kind.recv(100).decode()


@attack(ends=IS_KILLED)
def connects_to_loopback(host):
    """Connects to a TCP port that the host listens on at 127.0.0.1."""
    return greeting(socket.socket(socket.AF_INET), ("127.0.0.1", host.tcp))


@attack(ends=IS_KILLED)
def connects_to_loopback_of_ipv6(host):
    """Connects to a TCP port that the host listens on at ::1."""
    return greeting(socket.socket(socket.AF_INET6), ("::1", host.tcp6))


@attack(ends=IS_KILLED)
def sends_a_datagram(host):
    """Sends a UDP datagram to the host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"attack", ("127.0.0.1", host.udp))
    return "sent"


@attack(ends=IS_KILLED)
def connects_to_a_path(host):
    """Connects to a Unix socket of the host by its path, as docker's is."""
    return greeting(socket.socket(socket.AF_UNIX), host.path_socket)


@attack(ends=IS_KILLED)
def connects_to_an_abstract_name(host):
    """Connects to a Unix socket of the host by its abstract name, which no folder guards."""
    return greeting(socket.socket(socket.AF_UNIX), "\0" + host.abstract)


@attack(ends=IS_KILLED)
def redirects_a_pair_to_a_path(host):
    """Connects one end of a datagram socketpair, which needs no `socket`, to a socket of the host by its path."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with first, second:
        first.connect(host.path_datagram)
        first.send(b"attack")
    return "sent"


@attack(ends=IS_KILLED)
def sends_from_a_pair_to_an_abstract_name(host):
    """Sends from one end of a datagram socketpair to an abstract name of the host."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with first, second:
        first.sendto(b"attack", "\0" + host.abstract_datagram)
    return "sent"


@attack(ends=IS_KILLED)
def takes_a_name_with_a_pair(host):
    """Binds one end of a socketpair to an abstract name that programs of the host may look for."""
    errors = []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        try:
            first, second = socket.socketpair(socket.AF_UNIX, kind)
            with first, second:
                first.bind(f"\0ling_attack_{host.token}")
                return "bound"
        except OSError as error:
            errors.append(error)
    raise errors[0]


@attack(ends=IS_KILLED)
def listens_on_loopback(host):
    """Listens on a port of the host, for its programs to connect to."""
    with socket.socket(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname(), timeout=2):
            return "listened"


@attack(ends=IS_KILLED)
def asks_a_name_server(host):
    """Asks a name server for an address, which leaks data in the name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        question = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\x06attack\x07invalid\x00" + struct.pack(">2H", 1, 1)
        sender.sendto(question, ("127.0.0.1", host.udp))
    return "asked"


@attack(ends=IS_KILLED)
def reads_the_routes(host):
    """Asks the kernel by netlink for the network's devices."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asker:
        asker.settimeout(2)
        asker.sendto(struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0), (0, 0))
        return f"{len(asker.recv(65536))} bytes"


@attack(ends=IS_KILLED, works_as="root")
def opens_a_raw_socket(host):
    """Opens a raw socket, which reads other programs' packets."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        return "opened"


@attack(ends=IS_KILLED, works_as="root")
def opens_a_packet_socket(host):
    """Opens a packet socket, which sees all frames of the network's devices."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)):
        return "opened"


@attack(ends=IS_KILLED)
def opens_a_socket_to_the_hypervisor(host):
    """Opens a socket to the virtual machine's host (AF_VSOCK)."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        return "opened"


@attack(ends=IS_KILLED, works_as="root")
def opens_every_other_family(host):
    """Opens a socket of each family that the kernel knows, the kernel's cryptography (AF_ALG) among them."""
    opened = []
    for family in set(range(2, 46)) - {2, 10, 16, 40}:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
                opened.append(family)
            except OSError:
                continue
    return f"families {opened}" if opened else None


@attack(ends=IS_KILLED, unsafe="few kernels have such pairs; TIPC has")
def opens_a_pair_of_another_family(host):
    """Makes socketpairs of families other than Unix."""
    opened = []
    for family in (2, 10, 16, 30, 38, 40):
        try:
            for end in socket.socketpair(family, socket.SOCK_STREAM):
                end.close()
            opened.append(family)
        except OSError:
            continue
    return f"families {opened}" if opened else None


@attack(ends=IS_KILLED)
def opens_a_socket_by_machine_code(host):
    """Opens a socket by its own machine code, past the C library."""
    only_on_x86()
    code = b"\xbf\x02\x00\x00\x00\xbe\x01\x00\x00\x00\x31\xd2\xb8\x29\x00\x00\x00\x0f\x05\xc3"  # socket(2, 1, 0)
    return opened_number(machine_code(code))


@attack(ends=IS_KILLED)
def opens_a_socket_by_32_bit_calls(host):
    """Opens a socket by int 0x80, whose numbers a filter of 64-bit calls does not know."""
    only_on_x86()
    code = b"\x53\xbb\x02\x00\x00\x00\xb9\x01\x00\x00\x00\x31\xd2\xb8\x67\x01\x00\x00\xcd\x80\x5b\x48\x98\xc3"
    return opened_number(machine_code(code))  # push rbx; socket (359) of (2, 1, 0); pop rbx; cdqe


@attack(ends=IS_KILLED)
def opens_a_socket_with_high_bits(host):
    """Opens a socket with rubbish in the upper half of the arguments, which a filter may compare as 64 bits."""
    return opened_number(call("socket", (0xDEAD << 32) | socket.AF_INET, socket.SOCK_STREAM, 0))


def opened_number(descriptor: int) -> str:
    if descriptor < 0:
        raise OSError(-descriptor, os.strerror(-descriptor))
    os.close(descriptor)
    return "opened"


@attack(ends=IS_KILLED)
def opens_a_socket_in_its_own_network(host):
    """Makes a user and a network namespace in which it is root, and opens a raw socket there."""

    def inside() -> str:
        call("unshare", 0x10000000 | 0x40000000)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
            return "opened"

    return in_child(inside)


@attack(ends=IS_KILLED)
def makes_shared_memory(host):
    """Makes System V shared memory, which outlives its process and which any process of the host's user may map."""
    number = call("shmget", 0, 4096, 0o1600)
    ctypes.CDLL(None).shmctl(number, 0, None)
    return f"segment {number}"


@attack(ends=IS_KILLED)
def makes_a_message_queue(host):
    """Makes a System V message queue, which outlives its process."""
    number = call("msgget", 0, 0o1600)
    ctypes.CDLL(None).msgctl(number, 0, None)
    return f"queue {number}"


@attack(ends=IS_KILLED)
def makes_semaphores(host):
    """Makes System V semaphores, which outlive their process."""
    number = call("semget", 0, 1, 0o1600)
    ctypes.CDLL(None).semctl(number, 0, 0)
    return f"set {number}"


@attack(ends=IS_KILLED)
def makes_a_posix_queue(host):
    """Makes a POSIX message queue, which has a name but no path that a rule of files would cover."""
    name = f"ling_attack_{host.token}".encode()
    call("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, None)
    ctypes.CDLL(None).mq_unlink(b"/" + name)
    return "made"
