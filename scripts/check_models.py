"""Runs the Spin models of models/: each must hold, and each of its mutations must be caught.

A model says in its first comment what it proves, which functions it stands for (`C:`), and which mutations
it catches (`mutation NAME text`); `also NAME=VALUE ...` is another size to run at, `limit NAME text` a
weakness that the design accepts, shown by a run that fails. A mutation is a macro: the same model with a
fence dropped or a store moved. A model that includes weak_memory.pml is also run with -DTSO, the memory of
x86-64, which tells what no test on such a machine could ever show.

    python scripts/check_models.py [MODEL ...]   run; exit 1: wrong, or a mutation lives; 77: no spin
    python scripts/check_models.py --write         run, and write the results into models/README.md
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
CSRC = ROOT / "csrc"
README = MODELS / "README.md"
BEGIN, END = "<!-- generated: results -->", "<!-- end -->"
MACHINE = "weak_memory.pml"
MUTATION = re.compile(r"^ \* (mutation|limit) (\w+)\s+(.*(?:\n \* {10,}\S.*)*)", re.MULTILINE)
PROPERTY = re.compile(r"^ \* Property: ((?:.|\n \* )*?)\n \*\n", re.MULTILINE)
SIZES = re.compile(r"^ \* also ((?:\w+=\d+ ?)+)$", re.MULTILINE)
CODE = re.compile(r"^ \* C: +((?:.|\n \* )*?)\n \*\n", re.MULTILINE)
DEPTH_MAX = 200_000
MEMORY_MAX_MIB = 4000
SECONDS_MAX = 600  # of one run; seconds where nobody else computes
SKIPPED = 77


@dataclass(frozen=True)
class Mutation:
    name: str
    text: str
    is_limit: bool


@dataclass(frozen=True)
class Model:
    name: str
    path: Path
    proves: str
    stands_for: str
    sizes: tuple[tuple[str, ...], ...]
    mutations: tuple[Mutation, ...]
    memories: tuple[tuple[str, ...], ...]  # the weak machine, and x86-64's if that is another one


@dataclass(frozen=True)
class Result:
    """Of one run: errors is what pan counted, incomplete says why the search is no proof."""

    model: str
    macros: tuple[str, ...]
    errors: int
    states: int
    seconds: float
    incomplete: str

    @property
    def holds(self) -> bool:
        return self.errors == 0 and not self.incomplete


def one_line(text: str) -> str:
    return " ".join(text.replace("\n *", " ").split())


def read_model(path: Path) -> Model:
    """Raises ValueError for a model without a property, code that it stands for, or a mutation."""
    comment, body = path.read_text().split("*/", 1)
    proves, code = PROPERTY.search(comment), CODE.search(comment)
    mutations = tuple(
        Mutation(match[2], one_line(match[3]), match[1] == "limit") for match in MUTATION.finditer(comment)
    )
    if proves is None or code is None or not any(not mutation.is_limit for mutation in mutations):
        raise ValueError(f"{path.name} names no property, no C functions or no mutation in its first comment")
    sizes = ((), *(tuple(match[1].split()) for match in SIZES.finditer(comment)))
    memories = ((), ("TSO",)) if MACHINE in body else ((),)
    return Model(path.stem, path, one_line(proves[1]), one_line(code[1]), sizes, mutations, memories)


def all_models() -> list[Model]:
    return [read_model(path) for path in sorted(MODELS.glob("*.pml")) if path.name != MACHINE]


def missing_functions(model: Model) -> list[str]:
    """Names in the model's `C:` line that the file after them does not have (any more)."""
    missing = []
    for names, file in re.findall(r"([\w, .]+?) \((\w+\.[ch]|(?:driver|client)/\w+\.py)\)", model.stands_for):
        folder = CSRC if file.endswith((".c", ".h")) else ROOT / "src" / "shmdriver"
        text = "".join(path.read_text() for path in folder.rglob(file))
        for name in names.split(","):
            word = name.strip().rsplit(".", 1)[-1]
            if word and not re.search(rf"\b{re.escape(word)}\(", text):
                missing.append(f"{word} in {file}")
    return missing


def _call(command: list[str], folder: Path, seconds: float = SECONDS_MAX) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode != 0 and not (folder / "pan").exists():
        raise RuntimeError(f"{' '.join(command)} in {folder}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def run(model: Model, macros: tuple[str, ...], build: Path) -> Result:
    """Generates, compiles and runs one verifier: Spin's exhaustive search, no hashing that skips states."""
    folder = build / "-".join((model.name, *macros))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in (model.path, MODELS / MACHINE):
        shutil.copy(path, folder)
    started = time.monotonic()
    _call(["spin", "-a", *(f"-D{macro}" for macro in macros), model.path.name], folder)
    limits = [f"-DMEMLIM={MEMORY_MAX_MIB}", "-DSAFETY", "-DCOLLAPSE"]
    _call([os.environ.get("CC", "cc"), "-O1", "-w", *limits, "-o", "pan", "pan.c"], folder)
    try:
        output = _call(["./pan", f"-m{DEPTH_MAX}", "-n"], folder)
    except subprocess.TimeoutExpired:
        return Result(model.name, macros, 0, 0, time.monotonic() - started, f"not done after {SECONDS_MAX} s")
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    incomplete = re.search(
        r"max search depth too small|out of memory|reached -DMEMLIM|Search not completed", output
    )
    is_whole = errors is not None and (int(errors[1]) > 0 or incomplete is None)
    return Result(
        model.name, macros, int(errors[1]) if errors else 0, int(states[1]) if states else 0,
        time.monotonic() - started, "" if is_whole else (incomplete[0] if incomplete else output[-300:]),
    )  # fmt: skip


Results = dict[tuple[str, tuple[str, ...]], Result]


def jobs_of(models: list[Model]) -> list[tuple[Model, tuple[str, ...]]]:
    jobs: list[tuple[Model, tuple[str, ...]]] = []
    for model in models:
        for memory in model.memories:
            for size in model.sizes:
                jobs.append((model, (*memory, *size)))
                jobs.extend((model, (*memory, *size, mutation.name)) for mutation in model.mutations)
    return jobs


def is_caught(model: Model, memory: tuple[str, ...], mutation: Mutation, results: Results) -> bool:
    """At one of the model's sizes."""
    return any(results[model.name, (*memory, *size, mutation.name)].errors > 0 for size in model.sizes)


def complaints(models: list[Model], results: Results) -> list[str]:
    """What is wrong: a property that fails, a mutation that lives, a name that is gone from the code."""
    found = []
    for model in models:
        found += [f"{model.name} stands for {name}, which is not there" for name in missing_functions(model)]
        for memory in model.memories:
            for size in model.sizes:
                result = results.get((model.name, (*memory, *size)))
                if result is not None and not result.holds:
                    found.append(f"{model.name} {memory} {size}: {result.errors} errors {result.incomplete}")
        found += [
            f"{model.name}: {mutation.name} is not caught"
            for mutation in model.mutations
            if not is_caught(model, (), mutation, results)
        ]
    return found


def table(models: list[Model], results: Results) -> str:
    """The results as Markdown."""
    lines = []
    for model in models:
        weak_states = sum(results[model.name, size].states for size in model.sizes)
        tso_states = sum(results[model.name, (*model.memories[-1], *size)].states for size in model.sizes)
        lines += [
            f"### {model.name}", "", f"Stands for: {model.stands_for}", "", f"**Proves**: {model.proves}", "",
            f"Holds in all {weak_states:,} states of the weak machine and {tso_states:,} of x86-64's.", "",
            "| mutation | what is broken | weak machine | x86-64 |", "|---|---|---|---|",
        ]  # fmt: skip
        for mutation in model.mutations:
            weak = "caught" if is_caught(model, (), mutation, results) else "NOT CAUGHT"
            strong = "caught" if is_caught(model, model.memories[-1], mutation, results) else "no effect"
            name = f"{mutation.name} (accepted limit)" if mutation.is_limit else mutation.name
            lines.append(f"| {name} | {mutation.text} | {weak} | {strong} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names of models; none: all")
    parser.add_argument("--write", action="store_true", help="write the results into models/README.md")
    parser.add_argument("--no-mutations", action="store_true", help="only the properties")
    arguments = parser.parse_args()
    if shutil.which("spin") is None:
        print("models: SKIPPED, nothing was checked: spin is not installed (Debian: apt-get install spin)")
        return SKIPPED
    models = [model for model in all_models() if not arguments.models or model.name in arguments.models]
    jobs = (
        [(model, size) for model in models for size in model.sizes]
        if arguments.no_mutations
        else jobs_of(models)
    )
    build = ROOT / "build" / "models"
    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda job: run(job[0], job[1], build), jobs))
    results = {(result.model, result.macros): result for result in done}
    if arguments.no_mutations:
        bad = [
            f"{result.model}: {result.errors} errors {result.incomplete}"
            for result in done
            if not result.holds
        ]
        bad += [
            f"{model.name} stands for {name}, which is not there"
            for model in models
            for name in missing_functions(model)
        ]
    else:
        bad = complaints(models, results)
        print(table(models, results))
    for line in bad:
        print(f"FAILED {line}", file=sys.stderr)
    print(
        f"models: {len(models)} properties, {len(jobs)} runs, {sum(r.states for r in done):,} states, "
        f"{time.monotonic() - started:.0f} s: {f'{len(bad)} FAILED' if bad else 'all as they should be'}"
    )
    if arguments.write and not bad:
        before, rest = README.read_text().split(BEGIN, 1)
        README.write_text(f"{before}{BEGIN}\n\n{table(models, results)}\n{END}{rest.split(END, 1)[1]}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
