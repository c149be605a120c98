"""How a world ends: faults are over, everything is delivered, everybody goes, and nothing stays."""

from __future__ import annotations

from shmdriver._native import lib
from shmdriver.driver.lifecycle import ShutdownMode, State
from tests.simulation.acts import Acts
from tests.simulation.kernel import MS, NAMESPACES
from tests.simulation.rules import demand
from tests.simulation.tables import is_live, phase
from tests.simulation.world import CHECK_MS, World


def epilogue(world: World, acts: Acts) -> None:
    """Faults are over: everything is delivered, everybody goes, and nothing stays."""
    world.kernel.arm(0)
    world.note("epilogue")
    world.kernel.unveil()
    _serve(world)
    if any(not client.provable for client in world.boot.view.snapshot().clients if phase(client)):
        acts.kill_driver()  # a driver looks once, unless descriptors were out: the next one sees them all
        world.kernel.namespace = NAMESPACES[0]
        _serve(world)
    for _ in range(12):
        for process in world.boot.processes:
            process.go_on(world.clock.now_ns)
            if process.awake:
                process.finish_sending()
                for raw in list(process.pending.values()):
                    process.send(raw)
                while process.inbox:
                    world._receive(process, process.inbox.pop(0))
                for consumer in [c for c in process.consumers if not c.over]:
                    world._drain(consumer)
        world.tick(CHECK_MS)
        _serve(world)
    everybody, lost = [p for p in world.boot.processes if p.awake], [""]
    for _ in range(20):  # a handover that was asked for comes late, and all connect again
        everybody = [p for p in world.boot.processes if p.awake]
        lost = [str(process) for process in everybody if not process.session.is_settled]
        if not lost:
            break
        world.tick(CHECK_MS)
        _serve(world)
    demand(not lost, "when faults are over, every client is connected", lost)
    for process in [p for p in everybody if p.connected and world.rng.random() < 0.5]:
        if process.send(process.request(lib.SHMD_REQUEST_GOODBYE, world.clock.now_ns, deadline_ns=2**63)):
            acts._left(process)
    for _ in range(2):
        world.tick(2 * CHECK_MS)
        _serve(world)
    for process in [p for p in world.boot.processes if p.task.alive]:
        process.die(world.clock.now_ns)
    for _ in range(2):
        world.tick(2 * CHECK_MS)
        _serve(world)
    for _ in range(
        100
    ):  # whose death cannot be proved expires, and what is set aside for it goes with its epochs
        if not any(map(phase, world.boot.now.clients)):
            break
        _check(world)
        _serve(world)
    boot = world.boot
    live = [record.lease_id for record in boot.now.leases if is_live(record)]
    demand(not live, "when everybody is gone, no lease is live", live)
    clients = [record.client_id for record in boot.now.clients if phase(record)]
    demand(not clients, "when everybody is gone, no client is left", clients)
    held = [record.lease_id for record in boot.now.leases if phase(record) and record.quarantined]
    demand(not held, "when everybody is gone, nothing is set aside", held)
    boot.end_asked = True
    driver = world.driver
    assert driver is not None
    driver.request_shutdown(ShutdownMode.END, "epilogue")
    for _ in range(3):
        if world.driver is not None:
            world.tick(800)
    demand(world.driver is None, "a shutdown ends within its timeout and one tick")


def _check(world: World) -> None:
    """The next lease check, in time: a driver that is late takes clients' silence for its own."""
    assert world.driver is not None
    now_ns = world.clock.now_ns
    due_ns = world.driver._timers["lease_check"].deadline_ns or now_ns
    world.tick(max(due_ns - now_ns, MS) / MS)


def _serve(world: World) -> None:
    while world.driver is None or world.driver.state is State.STOPPED:
        world.start()
