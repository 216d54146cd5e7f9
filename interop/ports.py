"""Ports for servers that have to be told one, and cannot be asked which they took."""

import random
import socket

# Below those that Linux gives to whoever asks for any (`net.ipv4.ip_local_port_range`): nobody takes one by
# chance between the moment it is found free and the moment its server listens.
PORTS = range(15_000, 30_000)


def free_port() -> int:
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")
