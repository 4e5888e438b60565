"""Run the cluster for some minutes, and print what was lost and how long there was no service.

The exit status is 0 where every promise was kept, and also where something is missing: then the only
line says `not run:` and what.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from posd.testing.account import Account
from tests.debian import Missing
from tests.failover.calamities import Calamity, every_minute
from tests.failover.cluster import Cluster
from tests.failover.configuration import shown
from tests.failover.programs import Programs
from tests.failover.verdict import Verdict, broken, table
from tests.integration.chaos_case import LIMITS, SLUG
from tests.integration.harness import Shop, prepare
from tests.integration.load import Load
from tests.integration.load_roads import ALL_KINDS, CONFIGURATION

_WRITERS = 4
_TILLS = 12
_PACE = 0.2
_STAYS = 120.0


def main(minutes: int) -> int:
    """Return the exit status."""
    folder = Account.for_postgresql().temporary_folder(Path(tempfile.gettempdir()), "posd-ha-")
    folder.chmod(0o755)
    try:
        programs = Programs.gather(folder)
    except Missing as error:
        print(f"not run: {error}")
        return 0
    if programs.haproxy is None:
        print(f"not run: HAProxy: {programs.missing}")
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
    with closing(Shop.at(dsn, [SLUG])) as shop:
        shop.query(shown("sql", "posd"))
        nodes = [
            shop.start(f"{LIMITS}\n{CONFIGURATION}", dsn=each)
            for each in cluster.posd_dsns(shop.folder)
        ]
        load = Load(shop, SLUG, nodes)
        calamities: list[Calamity] = []
        try:
            load.start(_WRITERS, _TILLS, kinds=ALL_KINDS, pace=_PACE, stays=_STAYS)
            load.past(20)
            for calamity in every_minute(cluster, load, nodes, minutes):
                calamities.append(calamity)
                print(table([calamity]), flush=True)
            verdict = Verdict.over(load, load.finish())
        finally:
            load.abort()
    print(f"\n{table(calamities)}\n")
    print(f"{verdict.confirmed} publishes confirmed, {verdict.events} events in the log")
    print(f"{verdict.lost} lost, {verdict.reordered} reordered, {verdict.repeated} repeated,")
    print(f"{verdict.resyncs} needless resyncs, {verdict.missed} events that a till was never sent")
    failures = broken(verdict, calamities)
    for failure in failures:
        print(f"broken: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
