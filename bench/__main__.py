"""Measure posd and other servers side by side.

    python -m bench                        # the same as `make bench`: about five minutes
    python -m bench --full                 # the same as `make bench-full`: all rows, more rounds
    python -m bench fanout publish         # some rows
    python -m bench publish --subjects posd,shop-pool --rounds 5 --seconds 3 --json FILE

The benchmark starts a PostgreSQL server with fsync, and posd and its peers with TLS 1.3 and the same
certificate, on loopback. The measured server runs on one processor, the load client and PostgreSQL on the
others. The servers are measured in turn. The output shows the median, minimum and maximum of the rounds.
bench/README.md explains the rows.
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

from bench import call_rows, connection_rows, delivery_rows, processor, report
from bench.loader import Failed, Loader, NotRun, build
from bench.rows import Row
from bench.subjects import Subject, started
from bench.world import TENANTS, World

ROWS = (*delivery_rows.ROWS, *connection_rows.ROWS, *call_rows.ROWS)


def run(row: Row, world: World, options: argparse.Namespace) -> report.Result:
    """Measure a row. Each round measures the subjects in turn. A failure does not stop the others."""
    result = report.Result(row)
    if options.subjects:
        chosen = options.subjects.split(",")
        result.not_run = {name: "not in --subjects" for name in row.subjects if name not in chosen}
    rounds = options.rounds or row.rounds
    for _ in range(rounds if row.fresh else 1):
        with ExitStack() as stack:
            ready = prepared(row, world, options, result, stack)
            for _ in range(1 if row.fresh else rounds):
                for subject, loader in ready:
                    try:
                        figures = row.measure(subject, loader, options.seconds or row.seconds)
                    except Failed as error:
                        result.failed.setdefault(subject.name, []).append(str(error))
                    else:
                        result.figures.setdefault(subject.name, []).append(figures)
    return result


def prepared(
    row: Row,
    world: World,
    options: argparse.Namespace,
    result: report.Result,
    stack: ExitStack,
) -> list[tuple[Subject, Loader]]:
    """Start and prepare the subjects of a row. The stack stops them."""
    ready = []
    for name in row.subjects:
        if name in result.not_run:
            continue
        try:
            subject = stack.enter_context(started(name, world, options.processor))
            loader = stack.enter_context(Loader.start(subject.port))
            row.prepare(subject, loader)
        except NotRun as error:
            result.not_run[name] = str(error)
        except Failed as error:
            result.failed.setdefault(name, []).append(f"preparation: {error}")
        else:
            ready.append((subject, loader))
    return ready


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(names))
    parser.add_argument("--full", action="store_true", help="all rows, with five rounds each")
    parser.add_argument("--subjects", help="the servers to measure, separated by commas")
    parser.add_argument("--rounds", type=int, help="the number of measurements of each server")
    parser.add_argument("--seconds", type=float, help="the length of one measurement")
    parser.add_argument("--json", type=Path, help="the file to write all figures to")
    options = parser.parse_args()
    unknown = set(options.rows) - set(names)
    if unknown:
        parser.error(f"unknown row {', '.join(sorted(unknown))}; the rows are {', '.join(names)}")
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
    load = os.getloadavg()[0]
    print(f"load average {load:.2f}; pinned: {options.processor is not None}")
    with World.make(1000 if options.full else TENANTS) as world:
        for row in chosen:
            results.append(run(row, world, options))
            print("\n".join(results[-1].lines()), flush=True)
    print("", *report.table(results), "", sep="\n")
    print(report.ceiling(results) or "", f"The run took {time.time() - began:.0f} seconds.")
    if options.json:
        about = {
            "began": began,
            "seconds": time.time() - began,
            "load_average": load,
            "processors": os.cpu_count(),
            "command": sys.argv[1:],
        }
        options.json.write_text(json.dumps(report.as_json(results, about), indent=1) + "\n")
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
