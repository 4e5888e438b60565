"""posd beside what it replaces, in one run.

    python -m bench                        # what `make bench` runs: about five minutes
    python -m bench --full                 # `make bench-full`: every row, more rounds
    python -m bench fanout publish         # some rows
    python -m bench publish --subjects posd,shop-pool --rounds 5 --seconds 3 --json FILE

Starts a PostgreSQL with fsync, posd and its peers with TLS 1.3 and one certificate, on loopback. The server
that is measured has one processor, the load client and PostgreSQL have the others. The subjects take turns;
printed are medians with the least and the greatest of the rounds. bench/README.md explains the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench import processor, report
from bench.loader import Loader, NotRun, build
from bench.rows import ROWS, Row
from bench.subjects import Subject, started
from bench.world import World


def run(row: Row, world: World, options: argparse.Namespace) -> report.Result:
    """One row: start its subjects, and measure them in turn."""
    result = report.Result(row)
    wanted = options.subjects.split(",") if options.subjects else row.subjects
    with ExitStack() as stack:
        ready: list[tuple[Subject, Loader]] = []
        for name in row.subjects:
            if name not in wanted:
                result.not_run[name] = "not asked for"
                continue
            try:
                subject = stack.enter_context(started(name, world, options.processor))
            except NotRun as error:
                result.not_run[name] = str(error)
                continue
            loader = stack.enter_context(Loader.start(subject.port))
            row.prepare(subject, loader)
            ready.append((subject, loader))
            result.figures[name] = []
        for _ in range(options.rounds or row.rounds):
            for subject, loader in ready:
                figures = row.measure(subject, loader, options.seconds or row.seconds)
                result.figures[subject.name].append(figures)
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(names))
    parser.add_argument("--full", action="store_true", help="all rows, and five rounds of each")
    parser.add_argument("--subjects", help="some of posd and its peers, with commas between them")
    parser.add_argument("--rounds", type=int, help="how often each subject is measured")
    parser.add_argument("--seconds", type=float, help="of one measurement")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    unknown = set(options.rows) - set(names)
    if unknown:
        parser.error(
            f"there is no row {', '.join(sorted(unknown))}: choose from {', '.join(names)}"
        )
    return options


def main() -> int:
    options = arguments()
    try:
        build("loader")
    except NotRun as error:
        print(f"not run: {error}")
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options.processor = processor.share()
    if options.full:
        options.rounds = options.rounds or 5
    chosen = [
        row
        for row in ROWS
        if row.name in options.rows or (not options.rows and (options.full or not row.full_only))
    ]
    began = time.time()
    results = []
    print(f"load average {os.getloadavg()[0]:.2f}; pinned: {options.processor is not None}")
    with World.make() as world:
        for row in chosen:
            results.append(run(row, world, options))
            print("\n".join(results[-1].lines()), flush=True)
    print(f"{time.time() - began:.0f} seconds")
    if options.json:
        about = {"began": began, "seconds": time.time() - began, "load": os.getloadavg()}
        options.json.write_text(json.dumps(report.as_json(results, about), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
