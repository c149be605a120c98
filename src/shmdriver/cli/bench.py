"""``shmdriver bench``: throughput and latency on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from shmdriver.cli import options
from shmdriver.cli.output import note, print_json, say, say_all
from shmdriver.errors import ShmDriverError

_HELP = """Measure throughput and latency on this machine: C to C and Python to Python, two pinned processes.

    $ shmdriver bench throughput                     # one way
    $ shmdriver bench latency --bytes 64 --rate 0 --rate 100000
    $ shmdriver bench fanout --delivery lossy
    $ shmdriver bench all --quick --out before.json  # under a minute
    $ shmdriver bench compare before.json after.json
    $ shmdriver bench plot after.json --to plots

The cores are calibrated first: two threads bounce one cache line, which tells siblings and busy machines.
Every figure is the median of rounds that measure everything in turn, with the smallest and the largest
beside it. Rate 0 is a round trip flat out; at a rate, latency counts from when a message was due (no
coordinated omission).

Native programs are compiled when they are first run (a C compiler is needed; [bold]--side python[/bold]
does without). Starts a driver of its own unless [bold]--instance[/bold] names one. `make bench` in a source
checkout adds the peers: pipes, queues, pyzmq, faster-fifo, iceoryx2, tachyon.
"""
_WORDS = {
    "latency": "Round trips flat out, and one way at fixed rates, in HDR histograms.",
    "throughput": "One way, one by one and in batches.",
    "fanout": "One producer and 1 to 16 consumers; a stalled one beside.",
    "frames": "Large payloads, copied in and written in place.",
    "attach": "From nothing to the first message.",
    "idle": "What a waiting consumer costs, and how fast it wakes.",
    "growth": "How cost grows with message size, ring size, streams and leases (C).",
    "all": "All of them but growth.",
}
_SIDES = ("native", "python")
_DELIVERIES = ("reliable", "lossy", "latest")
_WAITS = ("spin", "adaptive", "sleep")

Many = typer.Option
BytesOption = Annotated[
    list[str] | None, Many("--bytes", "-b", metavar="SIZE", help="Payload: 64, 4KiB, 1MiB.")
]
RateOption = Annotated[list[int] | None, Many("--rate", "-r", help="Messages a second; 0: flat out.")]
ConsumersOption = Annotated[list[int] | None, Many("--consumers", help="How many consumers.", min=1, max=64)]
SideOption = Annotated[str | None, Many("--side", help="native or python. Default: both.")]
DeliveryOption = Annotated[str, Many("--delivery", help="reliable, lossy or latest.")]
WaitOption = Annotated[
    str | None, Many("--wait", help="spin, adaptive or sleep. Default: C spins, Python adapts.")
]
BatchOption = Annotated[
    int, Many("--batch", help="Messages a call where batches are measured (C).", min=1, max=1024)
]
SlotsOption = Annotated[int | None, Many("--slots", help="Of the ring. Default: by the payload.", min=2)]
StalledOption = Annotated[
    int, Many("--stalled", help="Lossy consumers that never read, beside (C).", min=0, max=63)
]
SecondsOption = Annotated[float | None, Many("--seconds", help="Length of a run.", min=0.01, max=20)]
WarmOption = Annotated[float | None, Many("--warm-up", help="Seconds before it.", min=0, max=10)]
RoundsOption = Annotated[int | None, Many("--rounds", help="Repetitions of everything.", min=1, max=100)]
CoresOption = Annotated[str | None, Many("--cores", metavar="A,B", help="Producer's and consumer's core.")]
QuickOption = Annotated[bool, Many("--quick", help="Short runs, fewer cases, one round.")]
LimitOption = Annotated[float, Many("--limit", metavar="SECONDS", help="No round that would end after this.")]
OutOption = Annotated[Path | None, Many("--out", "-o", metavar="FILE", help="Write the report (JSON).")]
PlotsOption = Annotated[Path | None, Many("--plots", metavar="DIR", help="Write plots (PNG).")]
InstanceOption = Annotated[
    str | None, Many("--instance", "-i", metavar="NAME", help="A running driver. Default: one of its own.")
]


def _choice(option: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise typer.BadParameter(f"{value!r}: expected {', '.join(known)}", param_hint=option)
    return value


def _sizes(texts: list[str] | None) -> tuple[int, ...]:
    from shmdriver.bench.cases import size_of

    found = []
    for text in texts or []:
        try:
            found.append(size_of(text))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--bytes") from None
        if not 8 <= found[-1] < 1 << 32:
            raise typer.BadParameter(f"{text}: expected 8 bytes to 4 GiB", param_hint="--bytes")
    return tuple(found)


def _measure(groups: list[str], given: dict[str, Any]) -> int:
    from shmdriver.bench import cases, machine, runner, tables

    quick = given["quick"]
    cores = machine.cores(given["cores"])
    seconds = given["seconds"] or (0.15 if quick else 0.4)
    warm_s = given["warm_up"] if given["warm_up"] is not None else (0.05 if quick else 0.1)
    wanted = cases.Wanted(
        sides=(_choice("--side", given["side"], _SIDES),) if given["side"] else _SIDES,
        bytes_each=_sizes(given["bytes_each"]),
        delivery=_choice("--delivery", given["delivery"], _DELIVERIES),
        wait=_choice("--wait", given["wait"], _WAITS) if given["wait"] else None,
        rates=tuple(given["rate"] or ()),
        consumers=tuple(given["consumers"] or ()),
        batch=given["batch"], slots=given["slots"], stalled=given["stalled"],
        seconds=seconds, warm_s=warm_s, cores=cores, quick=quick,
    )  # fmt: skip
    count = given["rounds"] or (1 if quick else 5)
    tries, limit_s = 1 if quick else 3, given["limit"]
    rounds = runner.Rounds(count=count, tries=tries, cores=cores, floors=not quick, limit_s=limit_s)
    made = cases.make(groups, wanted)
    if not made:
        raise ShmDriverError(f"nothing to measure: {', '.join(groups)} has no {given['side']} side")
    report = runner.measure(made, rounds, instance=given["instance"], say=note)
    report.options = {"groups": groups, "rounds": count} | {
        name: value for name, value in given.items() if name not in ("out", "plots", "json", "rounds")
    }
    print_json(report.as_json()) if given["json"] else say_all(tables.text(report))
    for problem in report.problems if given["json"] else ():
        note(problem)
    if given["out"] is not None:
        report.save(given["out"])
    if given["plots"] is not None:
        from shmdriver.bench import plots

        for path in plots.draw(report, given["plots"]):
            note(f"wrote {path}")
    return options.ERROR if report.problems else options.OK


def _add_group(app: typer.Typer, name: str, help_text: str) -> None:
    from shmdriver.bench.cases import GROUPS

    @app.command(name, help=help_text)
    def command(
        *,
        side: SideOption = None, bytes_each: BytesOption = None, delivery: DeliveryOption = "reliable",
        wait: WaitOption = None, rate: RateOption = None, consumers: ConsumersOption = None,
        batch: BatchOption = 64, slots: SlotsOption = None, stalled: StalledOption = 0,
        seconds: SecondsOption = None, warm_up: WarmOption = None, rounds: RoundsOption = None,
        limit: LimitOption = 600, cores: CoresOption = None, quick: QuickOption = False,
        out: OutOption = None, plots: PlotsOption = None, instance: InstanceOption = None,
        json: options.JsonOption = False,
    ) -> None:  # fmt: skip
        groups = [each for each in GROUPS if each != "growth"] if name == "all" else [name]
        given = {key: value for key, value in locals().items() if key not in ("name", "groups", "GROUPS")}
        raise typer.Exit(_measure(groups, given))


def register(app: typer.Typer) -> None:
    """Add the command and what it can measure."""

    @app.callback(help=_HELP, no_args_is_help=True, invoke_without_command=False)
    def bench() -> None:
        pass

    for name, words in _WORDS.items():
        _add_group(app, name, words)

    @app.command("compare")
    def compare(
        before: Annotated[Path, typer.Argument(metavar="A.json")],
        after: Annotated[Path, typer.Argument(metavar="B.json")],
        *,
        json: options.JsonOption = False,
    ) -> None:
        """How many times better is B? Better or worse is said only beyond the noise of the rounds."""
        from shmdriver.bench import compare as comparing
        from shmdriver.bench.report import Report

        reports = Report.load(before), Report.load(after)
        print_json(comparing.as_json(*reports)) if json else say_all(comparing.text(*reports))

    @app.command("plot")
    def plot(
        report: Annotated[Path, typer.Argument(metavar="REPORT.json")],
        *,
        to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder for the PNG files.")] = Path(),
    ) -> None:
        """Draw percentile curves, throughput over size, scaling over consumers (needs matplotlib)."""
        from shmdriver.bench import plots
        from shmdriver.bench.report import Report

        for path in plots.draw(Report.load(report), to):
            say(str(path))
