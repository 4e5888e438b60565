"""The commands of docs/install.md, operations.md and runbook.md, in order, on a bare Debian 12."""

from __future__ import annotations

import shutil
import time

from twisted.trial.unittest import SynchronousTestCase

from tests import documents
from tests.documents import Block
from tests.shown import matches_output
from tests.system import debian_package, machine
from tests.system.debian_tree import debian
from tests.system.machine import Machine
from tests.system.terminal import BlockFailed, Terminal

PAGES = ("docs/install.md", "docs/operations.md", "docs/runbook.md")
_HOOK = "/etc/letsencrypt/renewal-hooks/deploy/posd"
_TILL_SECONDS = 60.0


def server(test: SynchronousTestCase) -> Machine:
    """Return a bare Debian 12 with only the package, at the path of the page."""
    tree = debian()
    package = debian_package.package()
    booted = machine.boot(test, tree.tree, [tree.packages])
    booted.path("/etc/apt/sources.list").write_text(tree.source)
    booted.path("/srv/posd").mkdir()
    shutil.copy(package, booted.path("/srv/posd"))
    return booted


class PageTests(SynchronousTestCase):
    """A technician at the server, with a second terminal for the till."""

    def setUp(self) -> None:
        self.machine = server(self)
        self.root = self.open("root")
        self.till = self.open("till")
        self._said = ""
        self._running = ""
        self._place = ""

    def open(self, name: str) -> Terminal:
        terminal = Terminal.open(self.machine, name)
        self.addCleanup(terminal.close)
        return terminal

    def test_everything_happens_as_the_page_says(self) -> None:
        began = time.monotonic()
        delivered = 0.0
        for page in PAGES:
            for block in documents.blocks(page):
                self._place = f"{page}, line {block.line}"
                try:
                    self.play(block)
                except BlockFailed as failed:
                    said = self.machine.run(
                        "journalctl", "--no-pager", "--lines=60", "--unit=posd*"
                    )
                    self.fail(f"{self._place}:\n{block.text}\n{failed}\n{said}")
                if block.of("text", "till") and not delivered:
                    delivered = time.monotonic() - began
        self.assertTrue(delivered)
        took = time.monotonic() - began
        print(
            f"\ncommands of the guides: {delivered:.0f} s to the first orders, {took:.0f} s to the end"
        )
        self.renew()

    def renew(self) -> None:
        """Call the page's hook as certbot does, and wait until posd serves the new certificate."""
        self.machine.run(
            "posctl", "make-cert", "--dir", "/root/lineage", "--name", "pos.example.com"
        )
        self.machine.run(_HOOK, environ={"RENEWED_LINEAGE": "/root/lineage"})
        serial = ("openssl", "x509", "-noout", "-serial")
        brought = self.machine.run(*serial, "-in", "/root/lineage/fullchain.pem")
        asked = (
            f"openssl s_client -connect localhost:9010 </dev/null 2>/dev/null | {' '.join(serial)}"
        )
        self.machine.await_(
            lambda: self.machine.run("sh", "-c", asked) == brought,
            "the renewed certificate is served",
        )

    def play(self, block: Block) -> None:
        match block.language, *block.words[:1]:
            case ["sh", "root"]:
                self._said = self.root.type(block.text)
            case ["text", "shows"]:
                self.check(block, self._said)
            case ["sh", "till"]:
                self._running = self.till.begin(block.text)
                self.till.await_(self._running, "connected", _TILL_SECONDS)
            case ["text", "till"]:
                self.till.await_(self._running, "received", _TILL_SECONDS)
                self.check(block, self.till.end(self._running))
            case ["sh" | "dockerfile", "elsewhere"]:
                # tests.test_docs_operations checks its syntax.
                pass
            case _:
                self.fail(f"{self._place} does not say whose it is")

    def check(self, block: Block, said: str) -> None:
        if not matches_output(block.text, said):
            self.fail(f"{self._place}, shows\n{block.text}\nbut it was\n{said}")
