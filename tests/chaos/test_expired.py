"""Clients that were stopped until they had expired, and go on: what they asked for, what they give back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGSTOP

from shmdriver.observe import Instance
from tests.chaos.stage import PATIENCE_S, ROOT, Stage, Zygote, wait_until

SHORT = {"policies.lease_timeout_ms": 600, "policies.heartbeat_interval_ms": 100}
READER = """
import sys, shmdriver
client = shmdriver.connect(sys.argv[1], name="late")
consumer = client.consumer("s")
print("attached", flush=True)
sys.stdin.readline()
consumer.close()
client.close()
print("closed", flush=True)
sys.stdin.readline()
"""


def clients(stage: Stage, *, gone: bool = True) -> list[str]:
    with Instance(stage.instance) as view:
        return [client.name for client in view.clients(gone=gone)]


def test_who_has_expired_gives_back_what_it_closes(make_stage: Callable[..., Stage]) -> None:
    """Its gate and its record are nobody's while it lives on and the epoch is in use."""
    stage = make_stage(SHORT)
    writer = stage.producer("s", 1)
    command = [sys.executable, "-c", READER, stage.instance]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "attached\n"
            reader.send_signal(SIGSTOP)
            wait_until(lambda: "late" not in clients(stage, gone=False), "it to expire")
            assert "late" in clients(stage), "its gate is set aside"
            reader.send_signal(SIGCONT)
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "closed\n"
            wait_until(lambda: "late" not in clients(stage), "what was set aside to be free")
            assert reader.poll() is None
            assert writer.alive
        finally:
            reader.kill()


def test_attach_of_a_client_that_expired_while_it_wrote_its_request_ends(
    striking: Zygote, tmp_path: Path, instance_name: str
) -> None:
    """Nobody reads its ring any more, so nobody would answer."""
    with Stage(instance_name, tmp_path, striking, **SHORT) as stage:
        stage.start_driver()
        late = stage.producer("s", 1, attached=False, failpoint="control.written:1:stop")
        wait_until(lambda: late.is_stopped, "it to be stopped in its attach")
        wait_until(lambda: not clients(stage), "it to expire", PATIENCE_S)
        late.go_on()
        assert late.join() != 0
        assert "LeaseRevoked" in late.log_text()
        assert "no longer registered" in late.log_text()
