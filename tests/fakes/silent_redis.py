"""A Redis that has hung: it accepts connections, at an address of TCP, and never answers."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class SilentRedis:
    url: str
    accepted: list[socket.socket] = field(default_factory=list)


@contextmanager
def silent_redis() -> Iterator[SilentRedis]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        silent = SilentRedis(f"redis://127.0.0.1:{listening.getsockname()[1]}/0")

        def accept() -> None:
            try:
                while True:
                    silent.accepted.append(listening.accept()[0])
            except OSError:
                pass  # closed at the end

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield silent
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in silent.accepted:
        connection.close()
