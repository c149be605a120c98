"""Part 1: every file of the Python standard library, by way of one reliable stream, to two consumers.

A file is a FILE message (its path), CHUNK messages (its bytes, written by the file system straight into
shared memory) and an END message (the SHA-256 of what the producer read). WHOLE ends the transfer with
the SHA-256 of all of it. Each consumer hashes what it receives and compares.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import time
from pathlib import Path
from typing import Any

from shmdriver import Client
from shmdriver.demo.processes import Port, Worker, results
from shmdriver.demo.stage import DemoFailed, Row, Stage

__all__ = ["run"]

_FILE, _CHUNK, _END, _WHOLE = 1, 2, 3, 4
_CHUNK_BYTES = 256 << 10
_SLOTS = 512
_ARENA_BYTES = 8 << 20
_CONSUMERS = 2
_QUICK_FILES = 400


def standard_library(limit: int | None = None) -> list[Path]:
    """The files of the standard library, packages that were installed beside it left out."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages"})
        found.extend(Path(folder, name) for name in sorted(names) if os.access(Path(folder, name), os.R_OK))
        if limit is not None and len(found) >= limit:
            return found[:limit]
    return found


def run(stage: Stage) -> None:
    """Sends the files and compares the hashes."""
    paths = standard_library(_QUICK_FILES if stage.quick else None)
    total_bytes = sum(path.stat().st_size for path in paths)
    client = Client(stage.instance)
    workers = [Worker(f"consumer-{n + 1}", _consume, client, "files") for n in range(_CONSUMERS)]
    producer = Worker("producer", _produce, client, "files", paths, _CONSUMERS)
    with stage.screen.bar("sending") as bar:

        def show() -> None:
            sent = int(producer.latest or 0)
            bar.update(sent / max(1, total_bytes), f"{sent >> 20} of {total_bytes >> 20} MiB")

        sent, *received = results([producer, *workers], timeout_s=60, tick=show)
    for each in received:
        if each["files"] != sent["files"] or each["bytes"] != sent["bytes"]:
            raise DemoFailed(f"{sent} were sent, {each} were received")
    seconds = max(each["seconds"] for each in received)
    wrong = sum(each["wrong"] for each in received)
    lost = sum(each["lost"] for each in received)
    rate = sent["bytes"] / seconds
    count = sent["files"]
    stage.screen.line(
        f"{count:,} files, {sent['bytes'] / 1e6:,.0f} MB to {_CONSUMERS} consumers in {seconds:.2f} s "
        f"({rate / 1e9:.2f} GB/s each, hashed twice in every process); "
        f"SHA-256 equal: {count * _CONSUMERS - wrong:,} of {count * _CONSUMERS:,}",
        "✓" if wrong + lost == 0 else "✗",
    )
    stage.rows.append(Row(f"{count:,} files to {_CONSUMERS}, SHA-256", "GB/s", rate / 1e9, lost=lost + wrong))


def _produce(port: Port, client: Client, stream: str, paths: list[Path], consumers: int) -> dict[str, Any]:
    with (
        client,
        client.producer(
            stream, max_message=_CHUNK_BYTES, slots=_SLOTS, arena=_ARENA_BYTES, min_consumers=consumers
        ) as out,
    ):
        whole = hashlib.sha256()
        sent, said = 0, 0
        for path in paths:
            digest = hashlib.sha256()
            out.publish(os.fsencode(path), type=_FILE)
            with path.open("rb", buffering=0) as file:
                while True:
                    with out.claim(_CHUNK_BYTES, type=_CHUNK) as claim:
                        length = file.readinto(claim.view)
                        if not length:
                            claim.abort()
                            break
                        digest.update(claim.view[:length])
                        whole.update(claim.view[:length])
                        claim.commit(length)
                    sent += length
            out.publish(digest.digest(), type=_END)
            if sent - said > 4 << 20:
                port.progress(sent)
                said = sent
        out.publish(whole.digest(), type=_WHOLE)
        return {"files": len(paths), "bytes": sent}


def _consume(_: Port, client: Client, stream: str) -> dict[str, Any]:
    files = received = wrong = 0
    started_s = 0.0
    whole, digest, name = hashlib.sha256(), hashlib.sha256(), b""
    ended = False
    with client, client.consumer(stream) as consumer:
        for message in consumer:
            if message.type == _CHUNK:
                data = message.data
                digest.update(data)
                whole.update(data)
                received += len(data)
            elif message.type == _FILE:
                started_s = started_s or time.perf_counter()
                digest, name = hashlib.sha256(), bytes(message)
            elif message.type == _END:
                files += 1
                wrong += digest.digest() != bytes(message) or not name
                name = b""
            else:
                ended = True
                wrong += whole.digest() != bytes(message)
        return {
            "files": files,
            "bytes": received,
            "wrong": wrong + (not ended),
            "lost": consumer.lost,
            "seconds": time.perf_counter() - started_s,
        }
