"""A client as an address: in executors, pools, initialisers and subprocesses; handles refuse to travel."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from multiprocessing.managers import BaseManager

import pytest

import shmdriver

N = 50
PATIENCE_S = 60
CHILD = """
import pickle, sys
client = pickle.load(sys.stdin.buffer)
with client.producer("s") as out:
    for n in range({n}):
        out.publish(b"%d" % n)
client.close()
"""

_client: shmdriver.Client | None = None


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def echo(client, k):
    """Attaches in whichever process runs it; what it read, and by whom."""
    with client.consumer(f"in{k}", start="oldest") as into, client.producer(f"out{k}") as out:
        message = into.read(timeout=PATIENCE_S)
        out.publish(bytes(message), type=k)
    return os.getpid(), client.client_id


def remember(client):
    global _client
    _client = client


def echo_of_initializer(k):
    assert _client is not None
    return echo(_client, k)


def exchange(client, submit):
    """Sends one message to each of four tasks and collects their answers."""
    readers = [client.consumer(f"out{k}") for k in range(4)]
    outs = [client.producer(f"in{k}") for k in range(4)]
    for k, out in enumerate(outs):
        out.publish(b"for %d" % k)
    done = submit()
    for k, reader in enumerate(readers):
        assert bytes(reader.read(timeout=PATIENCE_S)) == b"for %d" % k
        reader.close()
    for out in outs:
        out.close()
    assert client.client_id not in {client_id for _, client_id in done}
    assert os.getpid() not in {pid for pid, _ in done}
    by_process: dict[int, set[int]] = {}
    for pid, client_id in done:
        by_process.setdefault(pid, set()).add(client_id)
    return by_process


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_executor_takes_a_client_as_an_argument(client, method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        exchange(client, lambda: list(pool.map(echo, [client] * 4, range(4))))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_client_that_an_initializer_keeps_connects_once_a_process(client, method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(
        2, mp_context=context, initializer=remember, initargs=(client,)
    ) as pool:
        found = exchange(client, lambda: list(pool.map(echo_of_initializer, range(4))))
        assert all(len(ids) == 1 for ids in found.values())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_multiprocessing_pool_takes_a_client(client, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        exchange(client, lambda: pool.starmap(echo, [(client, k) for k in range(4)]))
        pool.close()
        pool.join()


def test_an_executor_of_threads_shares_the_connection(client):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: client.client_id, range(8)))
    assert found == {client.client_id}


def test_a_client_travels_to_a_subprocess_as_a_pickle(client):
    with client.consumer("s") as into:
        subprocess.run(
            [sys.executable, "-c", CHILD.format(n=N)],
            input=pickle.dumps(client),
            check=True,
            timeout=PATIENCE_S,
        )
        assert [bytes(message) for message in into] == [b"%d" % n for n in range(N)]


def test_a_subprocess_finds_the_instance_in_its_environment(client):
    program = (
        "import shmdriver\n"
        "with shmdriver.connect() as client, client.producer('s') as out:\n    out.publish(b'x')\n"
    )
    environment = {**os.environ, "SHMDRIVER_DRIVER_INSTANCE": client.instance}
    with client.consumer("s") as into:
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=PATIENCE_S)
        assert [bytes(message) for message in into] == [b"x"]


def test_handles_refuse_to_be_pickled_copied_or_sent(client):
    with client.consumer("s") as into, client.producer("s") as out:
        for handle in (into, out):
            for travel in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="pass its Client"):
                    travel(handle)
        with (
            concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
            pytest.raises(TypeError, match="pass its Client"),
        ):
            pool.submit(len, into).result(PATIENCE_S)


def test_a_closed_client_that_is_sent_is_an_address_all_the_same(client):
    closed = shmdriver.connect(client.instance)
    closed.close()
    with pickle.loads(pickle.dumps(closed)) as other:
        assert other.boot_id == client.boot_id


def test_a_manager_may_hold_a_client(client):
    class Manager(BaseManager):
        pass

    Manager.register("identity", callable=_Identity)
    with Manager(ctx=multiprocessing.get_context("fork")) as manager:
        identity = manager.identity()  # type: ignore[attr-defined]
        assert identity.of(client) != client.client_id


class _Identity:
    def of(self, client):
        return client.client_id
