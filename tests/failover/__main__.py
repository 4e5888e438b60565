"""Run the cluster for some minutes, and print the losses and the times without service.

The exit status is 0 if all promises were kept. It is also 0 if a program is missing: then the only line
begins with `not run:`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from functools import reduce
from operator import add
from pathlib import Path

from posd.testing.account import SystemAccount
from tests.debian import Missing
from tests.failover.calamities import Calamity, every_minute
from tests.failover.cluster import Cluster
from tests.failover.configuration import DIRECT, shown
from tests.failover.programs import Programs
from tests.failover.verdict import Verdict, broken, table
from tests.integration.chaos_case import LIMITS
from tests.integration.harness import Shop, prepare
from tests.integration.load import Load
from tests.integration.load_roads import ALL_KINDS, CONFIGURATION

_WRITERS = 3
_TILLS = 6
_PACE = 0.2
_STAYS = 120.0


def main(minutes: int) -> int:
    """Return the exit status."""
    folder = SystemAccount.for_postgresql().temporary_folder(
        Path(tempfile.gettempdir()), "posd-ha-"
    )
    folder.chmod(0o755)
    try:
        return _run(Programs.gather(folder), folder, minutes)
    except Missing as error:
        print(f"not run: {error}")
        return 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(programs: Programs, folder: Path, minutes: int) -> int:
    for reason in programs.missing:
        print(f"not run without it: {reason}")
    began = time.monotonic()
    cluster = Cluster.start(programs, folder)
    try:
        print(f"from nothing to a leader and two that follow it: {time.monotonic() - began:.1f} s")
        return _endure(cluster, minutes)
    finally:
        cluster.stop()


def _endure(cluster: Cluster, minutes: int) -> int:
    dsn = cluster.superuser_dsn("posd")
    prepare(dsn)
    slugs = {via: f"shop-{number}" for number, via in enumerate((DIRECT, "proxies"), 1)}
    with closing(Shop.at(dsn, list(slugs.values()))) as shop, ExitStack() as running:
        shop.query(shown("sql", "posd"))
        loads: dict[str, Load] = {}
        for via, dsns in cluster.posd_dsns(shop.folder).items():
            nodes = [shop.start(f"{LIMITS}\n{CONFIGURATION}", dsn=each) for each in dsns]
            loads[via] = load = Load(shop, slugs[via], nodes)
            running.callback(load.abort)
            load.start(_WRITERS, _TILLS, kinds=ALL_KINDS, pace=_PACE, stays=_STAYS)
            load.past(20)
        calamities: list[Calamity] = []
        for seen in every_minute(cluster, loads, minutes):
            calamities += seen
            print(table(seen), flush=True)
        verdicts = [Verdict.over(load, load.finish()) for load in loads.values()]
    return _tell(reduce(add, verdicts), calamities)


def _tell(verdict: Verdict, calamities: list[Calamity]) -> int:
    print(f"\n{table(calamities)}\n")
    print(f"{verdict.confirmed} publishes confirmed, {verdict.events} events in the log")
    print(f"{verdict.lost} lost, {verdict.reordered} reordered, {verdict.repeated} repeated")
    print(f"{verdict.resyncs} needless resyncs, {verdict.unnoticed} needed ones that were not made")
    print(f"{verdict.missed} events that a till was never sent")
    failures = broken(verdict, calamities)
    for failure in failures:
        print(f"broken: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
