"""Part 3: 1080p frames, rendered into private memory and copied, and rendered straight into shared memory.

Frame k is a base picture plus k in every byte. The consumer looks at three rows of every frame, and at
every byte of one frame in 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from shmdriver.demo.channels import Channel, PipeChannel, QueueChannel, StreamChannel
from shmdriver.demo.processes import Port, Worker, results
from shmdriver.demo.stage import DemoFailed, Row, Stage, cores

__all__ = ["run"]

_SHAPE = (1080, 1920, 3)
_FRAME_BYTES = 1080 * 1920 * 3
_SLOTS = 4  # 24 MiB of frames
_WHOLE_EVERY = 16
_OURS_S, _PEER_S = 1.2, 0.8


def run(stage: Stage) -> None:
    """Measures and checks: copy and claim, Pipe and Queue."""
    rates: dict[str, float] = {}
    bad: dict[str, int] = {}
    for name in ("copy", "claim", "Pipe", "Queue"):
        channel = _channel(stage, name)
        writer, reader = cores()
        seconds = stage.seconds(_OURS_S if isinstance(channel, StreamChannel) else _PEER_S)
        with stage.screen.bar(f"frames: {name}"):
            consumer = Worker(f"frames-{name}-consumer", _take, channel, core=reader)
            producer = Worker(f"frames-{name}-producer", _SENDERS[name], channel, seconds, core=writer)
            got, sent = results([consumer, producer], timeout_s=30)
        bad[name] = sent - got["count"] + got["wrong"] + got["lost"]
        rates[name] = (got["count"] - 1) * _FRAME_BYTES / got["seconds"] / 1e9
        if bad[name] and name in ("Pipe", "Queue"):
            raise DemoFailed(f"frames by {name}: sent {sent}, received {got}")
        stage.screen.line(
            f"{name:<5}: {got['count']:>5,} frames in {got['seconds']:.2f} s, {rates[name]:>6.2f} GB/s, "
            f"{(got['count'] - 1) / got['seconds']:>6,.0f} frames/s, rendered and checked",
            "✓" if bad[name] == 0 else "✗",
        )
    for name in ("copy", "claim"):
        stage.rows.append(
            Row(f"1080p frames, {name}", "GB/s", rates[name], rates["Pipe"], rates["Queue"], bad[name])
        )


def _channel(stage: Stage, name: str) -> Channel:
    if name == "Pipe":
        return PipeChannel()
    if name == "Queue":
        return QueueChannel(limit=_SLOTS)
    return StreamChannel(stage.instance, f"frames-{name}", slots=_SLOTS, max_message=_FRAME_BYTES)


def _base() -> np.ndarray[Any, Any]:
    rows, columns, _ = np.ogrid[: _SHAPE[0], : _SHAPE[1], : _SHAPE[2]]
    return np.broadcast_to((rows + columns) % 251, _SHAPE).astype(np.uint8)


def _render(base: np.ndarray[Any, Any], number: int, out: np.ndarray[Any, Any]) -> None:
    np.add(base, np.uint8(number & 0xFF), out=out)


def _send_copies(_: Port, channel: StreamChannel, seconds: float) -> int:
    base, out, frame, number = _base(), channel.producer(), np.empty(_SHAPE, np.uint8), 0
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        _render(base, number, frame)
        out.publish_array(frame)
        number += 1
    channel.end()
    return number


def _send_claims(_: Port, channel: StreamChannel, seconds: float) -> int:
    base, out, number = _base(), channel.producer(), 0
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        with out.claim_array(_SHAPE, "u1") as frame:
            _render(base, number, frame)
        number += 1
    channel.end()
    return number


def _send_bytes(_: Port, channel: PipeChannel, seconds: float) -> int:
    base, send, frame, number = _base(), channel.sender(), np.empty(_SHAPE, np.uint8), 0
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        _render(base, number, frame)
        send(frame.reshape(-1).data)  # type: ignore[arg-type]
        number += 1
    channel.end()
    return number


def _send_objects(_: Port, channel: QueueChannel, seconds: float) -> int:
    base, put, number = _base(), channel.sender(), 0
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        frame = np.empty(_SHAPE, np.uint8)  # a new one each time: it is pickled later
        _render(base, number, frame)
        put(frame)  # type: ignore[arg-type]
        number += 1
    channel.end()
    return number


_SENDERS: dict[str, Callable[..., int]] = {
    "copy": _send_copies,
    "claim": _send_claims,
    "Pipe": _send_bytes,
    "Queue": _send_objects,
}


def _take(_: Port, channel: Channel) -> dict[str, Any]:
    base, expected = _base(), np.empty(_SHAPE, np.uint8)
    probes = (0, _SHAPE[0] // 2, _SHAPE[0] - 1)
    count = wrong = 0
    started_s = 0.0
    for frame in channel.arrays(_SHAPE):
        started_s = started_s or time.perf_counter()
        if count % _WHOLE_EVERY == 0:
            _render(base, count, expected)
            good = np.array_equal(frame, expected)
        else:
            add = np.uint8(count & 0xFF)
            good = all(np.array_equal(frame[row], base[row] + add) for row in probes)
        wrong += not good
        count += 1
        del frame  # a view holds its place in the ring
    return {
        "count": count,
        "wrong": wrong,
        "seconds": time.perf_counter() - started_s,
        "lost": channel.close(),
    }
