"""What the driver's own steps tell a simulation: what is in work, what it dies at, what it does again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shmdriver.driver.admission import Admission
from shmdriver.driver.connections import Connections
from shmdriver.driver.driver import Driver
from shmdriver.driver.leases import LeaseTable
from shmdriver.driver.lifecycle import State
from shmdriver.driver.memory import Provision
from tests.simulation.kernel import Crash
from tests.simulation.rules import Greeting, demand

if TYPE_CHECKING:
    from tests.simulation.world import World


@contextmanager
def probed(world: World) -> Iterator[None]:
    """Inside the block the driver tells this world, and is held to what these steps must not do."""
    publish, run, make = LeaseTable.publish, Provision.run, Provision._make
    greet, answer = Connections._greet, Connections._answer
    serve, finish = Driver._serve, Driver._finish_attach
    decide, grant = Admission._decide, Admission._grant

    def served(driver: Driver, request: Any, now_ns: int) -> None:
        world.in_work = request
        serve(driver, request, now_ns)

    def finished(driver: Driver, completion: Any, request: Any, now_ns: int) -> None:
        world.in_work = request
        finish(driver, completion, request, now_ns)

    def heard(connections: Any, peer: Any, hello: Any, *rest: Any) -> None:
        world.in_work = Greeting(int(hello.nonce))
        answer(connections, peer, hello, *rest)

    def greeted(connections: Any, peer: Any, hello: Any, now_ns: int) -> Any:
        rule = "a Hello at which a driver died is not served again"
        demand(int(hello.nonce) not in world.boot.poisons, rule, int(hello.client_id))
        try:
            return greet(connections, peer, hello, now_ns)
        except Crash:
            if not hello.client_id and not world.boot.knows(int(hello.nonce)):
                world.boot.poisons.add(int(hello.nonce))
            raise

    def ran(job: Any) -> Any:
        try:
            return run(job)
        except Crash:
            world.boot.died_at(job.subject.request)
            raise

    def once(step: Callable[..., Any], request_of: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any) -> Any:
            correlation = request_of(*args).correlation_id
            rule = "an attach at which a driver died is not served again"
            demand(correlation not in world.boot.poisons, rule, hex(correlation))
            try:
                return step(*args)
            except Crash:
                world.boot.poisons.add(correlation)
                raise

        return stepped

    def admitted(table: Any, lease: Any) -> None:
        state = world.driver.state if world.driver else State.INIT
        demand(state in (State.HEALTHY, State.DEGRADED), "nothing is admitted outside running", state)
        publish(table, lease)

    patched: list[tuple[Any, str, Any]] = [
        (LeaseTable, "publish", admitted), (Provision, "run", ran),
        (Connections, "_answer", heard), (Connections, "_greet", greeted),
        (Driver, "_serve", served), (Driver, "_finish_attach", finished),
        (Provision, "_make", once(make, lambda job: job.subject.request)),
        (Admission, "_decide", once(decide, lambda _self, request, *_: request)),
        (Admission, "_grant", once(grant, lambda _self, _undo, waiting, *_: waiting.request)),
    ]  # fmt: skip
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in patched]
    for owner, name, function in patched:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
