"""The systems that are compared, ours first. Add one: a module with a Peer, and a line here."""

from __future__ import annotations

from benchmarks.peers.base import Peer
from benchmarks.peers.pipe import PipePeer
from benchmarks.peers.queue import QueuePeer
from benchmarks.peers.stream import StreamPeer

__all__ = ["Peer", "available"]


def available() -> dict[str, type[Peer]]:
    """Those that can be imported here, by name."""
    peers: list[type[Peer]] = [StreamPeer, PipePeer, QueuePeer]
    try:
        from benchmarks.peers.zeromq import ZeromqPeer
    except ImportError:
        pass
    else:
        peers.append(ZeromqPeer)
    return {peer.name: peer for peer in peers}
