"""systemd's notification protocol: one datagram a message to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket

from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = ["Notifier"]


class Notifier:
    """Sends READY, WATCHDOG and STOPPING; without NOTIFY_SOCKET it does nothing."""

    def __init__(self, address: str | None = None) -> None:
        address = address if address is not None else os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_us = os.environ.get("WATCHDOG_USEC", "")
        self.watchdog_ns = int(watchdog_us) * 500 if watchdog_us.isdigit() and self._address else 0
        """Send WATCHDOG this often (half of what systemd allows); 0: it is not asked for."""

    def send(self, message: str) -> None:
        """Best effort: a supervisor that does not listen must not stop the driver."""
        if not self._address:
            return
        keep_standard_descriptors()
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sock:
                sock.sendto(message.encode(), self._address)
        except OSError:
            pass
