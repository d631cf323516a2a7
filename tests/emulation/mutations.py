"""Mutation of the CUDA code: each barrier, fence, mask, guard and accumulation is spoiled in turn.

    python -m tests.emulation.mutations PATH_OF_SO [--file background_pool] [--sites 3,17] [--json PATH]

The variant `mutants` numbers its sites (`sites.txt` next to the object) and spoils the one that `emu_switch_off` names.
A process per site, forked with the workload's inputs and results ready, runs the cases of the folders that the site's
file is compiled into, cheap ones first, under several schedules. A mutant is noticed if a result changes in a bit, or
by an error, a crash or a hang. Those that are not, and that `survivors.toml` does not explain, are tried again under
sanitizers: in the variant `thread` if they order memory, else in `address`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from tests.emulation import variants
from tests.emulation.cases import Case, all_cases, first_line
from tests.emulation.progress import Progress
from tests.emulation.reasons import Finding, Reasons
from tests.emulation.sources import ROOT, folders_of, place_text, relative
from tests.emulation.workload import Emulated, caps_of, compare, load, results

SURVIVORS = Path(__file__).with_name("survivors.toml")
LEAST = 0.95
SEEDS = (1, 2, 3, 0)
SYNCHRONISATION = ("barrier", "syncwarp", "fence")
"""Kinds of sites that order memory."""
# CPU seconds after which a case hangs: at least, and as a multiple of its time without a mutant.
LEAST_LIMIT, LIMIT_FACTOR = 2.0, 30


@dataclass(frozen=True)
class Site:
    """A place that the variant `mutants` can spoil."""

    number: int
    file: str
    line: int
    kind: str
    text: str

    @property
    def finding(self) -> Finding:
        """The site by the text of its line, for `survivors.toml`."""
        return Finding(self.file, place_text(self.file, self.line), self.kind)

    def __str__(self) -> str:
        return f"{self.number} {self.file}:{self.line} [{self.kind}] {self.text}"


@dataclass(frozen=True)
class Outcome:
    """Outcome of one mutant."""

    site: Site
    how: str
    """Difference, error or report that revealed the mutant; empty if nothing did."""


@dataclass(frozen=True)
class Trial:
    """A case under one cap of grids, with its results without a mutant and its CPU time."""

    case: Case
    cap: int
    expected: list[Tensor] | None
    """None where a sanitizer alone has to notice the mutant."""
    seconds: float


def read_sites(path: Path) -> list[Site]:
    """Read `sites.txt`: number, file:line, kind and text of a site on each line, separated by tabs.

    Raises:
        ValueError: If a line has other fields, or its file is not one of csrc/.
    """
    sites = []
    for row in path.read_text().splitlines():
        fields = row.split("\t")
        if len(fields) != 4:
            raise ValueError(f"{path}: NUMBER<TAB>file:line<TAB>kind<TAB>text is expected, got {row!r}")
        name, _, line = fields[1].rpartition(":")
        file = relative(name)
        if file is None:
            raise ValueError(f"{path}: {name} is not a file of csrc/")
        sites.append(Site(int(fields[0]), file, int(line), fields[2], fields[3].strip()))
    return sites


def baseline(emulated: Emulated, cases: Sequence[Case]) -> list[Trial]:
    """Run the cases without a mutant; return them from cheap to dear."""
    emulated.set_seed(SEEDS[0])
    trials = []
    for case in cases:
        for cap in caps_of(case):
            emulated.set_max_blocks(cap)
            start = time.process_time()
            expected = results(case, emulated.ops)
            trials.append(Trial(case, cap, expected, time.process_time() - start))
    return sorted(trials, key=lambda trial: trial.seconds)


def attempt(emulated: Emulated, number: int, trials: Sequence[Trial], seeds: Sequence[int]) -> str:
    """Spoil a site, 0 for none, and return how a trial notices it; empty: none does."""
    emulated.library.emu_switch_off(number)
    reports = emulated.library.emu_num_reports()
    for trial in trials:
        for seed in seeds:
            emulated.set_seed(seed)
            emulated.set_max_blocks(trial.cap)
            signal.setitimer(signal.ITIMER_PROF, max(LEAST_LIMIT, LIMIT_FACTOR * trial.seconds))
            where = f"({trial.case.name}, seed {seed}, cap {trial.cap})"
            try:
                found = results(trial.case, emulated.ops)
            except Exception as error:
                return f"error: {first_line(error)[:200]} {where}"
            if trial.expected is not None and (message := compare(found, trial.expected)):
                return f"{message} {where}"
            if emulated.library.emu_num_reports() != reports:
                return f"race reported {where}"
    return ""


def _start(emulated: Emulated, number: int, trials: Sequence[Trial], seeds: Sequence[int]) -> tuple[int, int]:
    """Fork a process that makes the attempt; return its id and the pipe on which it says how it ended."""
    reads, writes = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child != 0:
        os.close(writes)
        return child, reads
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.write(writes, b"=" + attempt(emulated, number, trials, seeds).encode()[:4000])
    finally:
        os._exit(0)


def _ended(status: int, reads: int) -> str:
    """Return how the process of an attempt noticed its mutant, from its exit status and what it wrote."""
    with os.fdopen(reads, "rb") as pipe:
        written = pipe.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        ended_by = os.WTERMSIG(status)
        return "hangs" if ended_by == signal.SIGPROF else f"crashes ({signal.Signals(ended_by).name})"
    return written[1:] if written.startswith("=") else f"ends with status {os.waitstatus_to_exitcode(status)}"


def attempts(
    emulated: Emulated, work: Sequence[tuple[int, Sequence[Trial]]], jobs: int, seeds: Sequence[int] = SEEDS
) -> Iterator[tuple[int, str]]:
    """Make the attempts in processes, `jobs` at a time; yield number and what was noticed, as they end."""
    waiting = list(reversed(work))
    running: dict[int, tuple[int, int]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, trials = waiting.pop()
            child, reads = _start(emulated, number, trials, seeds)
            running[child] = (number, reads)
        child, status = os.wait()
        if child in running:
            number, reads = running.pop(child)
            yield number, _ended(status, reads)


def mutate(
    emulated: Emulated,
    sites: Sequence[Site],
    cases: Sequence[Case],
    jobs: int,
    seeds: Sequence[int] = SEEDS,
    *,
    compares: bool = True,
) -> Iterator[Outcome]:
    """Spoil each site in turn; yield the outcomes as they end.

    Without `compares` only errors and reports of a sanitizer count, and no kernel runs before the processes are forked:
    ThreadSanitizer ignores all synchronisation in a process that had fibers when it was forked.

    Raises:
        RuntimeError: If a schedule changes a result without a mutant.
    """
    folders = {folder for site in sites for folder in folders_of(site.file)}
    cases = [case for case in cases if case.folder in folders]
    if compares:
        trials = baseline(emulated, cases)
    else:
        trials = [Trial(case, cap, None, 60.0) for case in cases for cap in caps_of(case)]
    chosen = {site.number: site for site in sites}
    work: list[tuple[int, Sequence[Trial]]] = [(0, trials)] if compares else []
    for site in sites:
        work.append((site.number, [trial for trial in trials if trial.case.folder in folders_of(site.file)]))
    for number, how in attempts(emulated, work, jobs, seeds):
        if number != 0:
            yield Outcome(chosen[number], how)
        elif how:
            raise RuntimeError(f"without a mutant: {how}")


def sanitized(variant: str, sites: Sequence[Site], jobs: int) -> dict[int, str]:
    """Return how the variant `address` or `thread` notices mutants, by number.

    Raises:
        RuntimeError: If its process fails.
    """
    if not sites:
        return {}
    before, environment = variants.launcher(variant)
    numbers = ",".join(str(site.number) for site in sites)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder) / "outcomes.json"
        arguments = ["--sites", numbers, "--jobs", str(jobs), "--seeds", "1", "--sanitizer", "--json", str(outcomes)]
        module = ["-m", "tests.emulation.mutations", str(variants.object_of(variant))]
        command = [*before, sys.executable, *module, *arguments]
        ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if not outcomes.exists():
            raise RuntimeError(f"{' '.join(command)}: {(ran.stdout + ran.stderr)[-2000:]}")
        return {entry["site"]["number"]: entry["how"] for entry in json.loads(outcomes.read_text())}


def report(outcomes: Sequence[Outcome], reasons: Reasons, *, whole: bool) -> list[str]:
    """Return what is wrong: mutants that survive without a reason, reasons without one, too few noticed."""
    survivors = [outcome.site.finding for outcome in outcomes if not outcome.how]
    looked_at = None if whole else [outcome.site.finding for outcome in outcomes]
    problems = reasons.problems(survivors, looked_at)
    noticed = len(outcomes) - len(survivors)
    if whole and noticed < LEAST * len(outcomes):
        problems.append(f"{noticed} of {len(outcomes)} mutants are noticed, fewer than {100 * LEAST:g} %")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations and print the survivors; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulation.mutations", description="Spoil each site in turn.")
    parser.add_argument("path", type=Path, help="fastood_emulated.so of the variant `mutants`")
    parser.add_argument("--file", default="", help="sites whose file has this part of a path alone")
    parser.add_argument("--sites", help="numbers of sites.txt, separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="schedules (default: %(default)s)")
    parser.add_argument("--sanitizer", action="store_true", help="look for its reports alone, without large cases")
    parser.add_argument(
        "--sanitizers", action="store_true", help="try survivors without a reason in `address`, `thread`"
    )
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    parser.add_argument("--verbose", action="store_true", help="print how each mutant was noticed")
    options = parser.parse_args(arguments)
    sites = read_sites(options.path.with_name("sites.txt"))
    whole = not (options.file or options.sites)
    numbers = {int(number) for number in options.sites.split(",")} if options.sites else None
    sites = [site for site in sites if options.file in site.file and (numbers is None or site.number in numbers)]
    if not sites:
        raise SystemExit(f"no site of {options.path.with_name('sites.txt')} is in --file {options.file!r} and --sites")
    outcomes = run(options, sites)
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    problems = report(outcomes, Reasons.read(SURVIVORS), whole=whole)
    if problems:
        print(*problems, sep="\n")
    print(f"mutations {sum(bool(outcome.how) for outcome in outcomes)} of {len(outcomes)} noticed")
    return 1 if problems else 0


def run(options: argparse.Namespace, sites: Sequence[Site]) -> list[Outcome]:
    """Run the mutations; return the outcomes by number, and print those not noticed, or all with --verbose."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    progress = Progress("mutations", len(sites))
    outcomes: dict[int, Outcome] = {}
    cases = [case for case in all_cases() if not (options.sanitizer and (case.large or case.blocks_race))]
    compares = not options.sanitizer
    for outcome in mutate(load(options.path), sites, cases, options.jobs, seeds, compares=compares):
        outcomes[outcome.site.number] = outcome
        progress.step(f"{sum(bool(known.how) for known in outcomes.values())} noticed")
        if options.verbose:
            print(f"{outcome.site}: {outcome.how or 'NOT NOTICED'}", flush=True)
    progress.end()
    if options.sanitizers:
        explained = Reasons.read(SURVIVORS).counts
        rest = [o.site for o in outcomes.values() if not o.how and o.site.finding not in explained]
        for variant in ("thread", "address"):
            sites = [site for site in rest if (site.kind in SYNCHRONISATION) == (variant == "thread")]
            for number, how in sanitized(variant, sites, options.jobs).items():
                outcomes[number] = Outcome(outcomes[number].site, how and f"{variant}: {how}")
    ordered = [outcomes[number] for number in sorted(outcomes)]
    for outcome in ordered:
        if not outcome.how:
            print(f"{outcome.site}: NOT NOTICED")
    return ordered


if __name__ == "__main__":
    sys.exit(main())
