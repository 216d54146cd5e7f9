"""A way to a MongoDB server on which documents are swapped: for values that drivers or the server of
the tests do not store, such as the types of BSON that are no longer used."""

import socket
import struct
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

from bson import encode


def stand_in(document: bytes, id_: int, number: int) -> bytes:
    """A document with the same `_id` and the same length that any server stores and that no other
    number has; a document too short for a number has a member that no other one has."""
    room = len(document) - len(encode({"_id": id_, "v": ""}))
    found = encode({"_id": id_, "v": f"{number:~<{room}}"} if room > 0 else {"_id": id_, "~": None})
    assert len(found) == len(document)
    return found


@contextmanager
def swapped(url: str, pairs: dict[bytes, bytes]):
    """The address of the server, behind which documents are shown as others of the same length."""
    server = urlsplit(url)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.create_connection((server.hostname, server.port))
            threading.Thread(target=forward, args=(client, upstream), daemon=True).start()
            threading.Thread(target=answer, args=(upstream, client, pairs), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"mongodb://127.0.0.1:{listener.getsockname()[1]}/?directConnection=true"
    # Ends what waits for a connection, too.
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def forward(client: socket.socket, server: socket.socket) -> None:
    while data := client.recv(1 << 16):
        server.sendall(data)
    server.shutdown(socket.SHUT_WR)


def answer(server: socket.socket, client: socket.socket, pairs: dict[bytes, bytes]) -> None:
    """Messages start with their length (MongoDB wire protocol, Standard Message Header)."""
    while head := exactly(server, 4):
        (length,) = struct.unpack("<i", head)
        message = head + exactly(server, length - 4)
        for stored, shown in pairs.items():
            message = message.replace(stored, shown)
        try:
            client.sendall(message)
        except OSError:
            return


def exactly(server: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = server.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data
