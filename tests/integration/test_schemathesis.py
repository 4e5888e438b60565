"""The description of the API, taken at its word by a program that tries to refute it.

schemathesis makes requests of `/openapi.json`, good ones and bad ones, and holds every answer against
it: no 5xx, no status, header, content type or body that is not described, nothing refused that is
described as good, nothing taken that is not, no other methods, no call without its key.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.harness import Shop

_SEED = 20261122
_EXAMPLES = 10
_PATIENCE = 900.0
_LIMITS = """
[limits]
failed_auth_per_minute = 1000000
publish_per_second_per_tenant = 100000
requests_per_second_per_credential = 100000
requests_per_second_per_address = 100000
bytes_per_second_per_credential = "1GiB"
connections_per_tenant = 10000
"""
_WORDS = {
    "path.tenant": "kitchen",
    "path.slug": "kitchen",
    "header.X-Tenant-ID": "kitchen",
    "header.X-Device-ID": "POS_1",
    "query.wait": 0,
    # Which key is to be revoked: made up, it would be one that is in use here.
    "query.id": 2**31 - 1,
}
"""What would lead nowhere if it were made up, or take long."""
_KNOWN = {"cardNumber": "GC-7Q4M-2XKD", "phone": "+447700900123", "orderId": "A-2"}
"""What there is, by the parts of addresses that lead to it; it is asked for four times of five."""
_TRUE_TO_TYPE = [200, 201, 400, 401, 403, 404, 409, 422]
"""What a good request may be answered with: a schema knows nothing of what is on a card."""


class SchemathesisTests(SynchronousTestCase):
    """A shop whose posd is asked everything there is."""

    def setUp(self) -> None:
        self.shop = Shop.open(tenants=["kitchen"])
        self.addCleanup(self.shop.close)
        self.posd = self.shop.start(_LIMITS)
        self.keys = {
            "tenant": self.shop.key(),
            "device": self.shop.key("device", device="POS_2"),
            "platform": self.shop.key("platform"),
            "admin": self.shop.key("admin", None),
        }
        self.fill()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def fill(self) -> None:
        """Sell a card and open an account, so that there is something to ask for."""
        card = {"cardNumber": _KNOWN["cardNumber"], "amount": 5000}
        for path, body in (
            ("/api/kitchen/gift-cards", card),
            (f"/api/kitchen/loyalty/{_KNOWN['phone']}/add", {"points": 5000}),
            ("/api/kitchen/events", {"type": "new_order", "data": {"orderId": _KNOWN["orderId"]}}),
        ):
            answer = self.posd.request("POST", path, body, key=self.keys["platform"])
            self.assertIn(answer.status, (200, 201), answer.json)

    def test_nothing_is_found(self) -> None:
        whole = self.posd.request("GET", "/openapi.json").json
        (self.folder / "schemathesis.toml").write_text(self.configuration(whole))
        ran = self.run_it()
        self.assertEqual(ran.returncode, 0, f"\n{ran.stdout}\n{ran.stderr}")
        # All but the description itself, with which it begins.
        self.assertRegex(ran.stdout, rf"Tested: +{len([*operations(whole)]) - 1}\b")

    def run_it(self) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("schemathesis")
        return subprocess.run(
            [program, "run", f"{self.posd.url}/openapi.json", "--tls-verify", str(self.posd.ca)],
            cwd=self.folder,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )

    def configuration(self, whole: Mapping[str, Any]) -> str:
        """Everything that schemathesis has to know besides, with a key of the right kind for each call."""
        return "\n".join(
            (
                f"seed = {_SEED}",
                "continue-on-failure = true",
                "max-stream-events = 1",
                "[generation]",
                f"max-examples = {_EXAMPLES}",
                "[checks]",
                f"positive_data_acceptance = {{expected-statuses = {_TRUE_TO_TYPE}}}",
                *(
                    f"[dictionaries.{name}]\nvalues = {json.dumps([value])}"
                    for name, value in _KNOWN.items()
                ),
                "[phases.stateful]",
                f"generation = {{max-examples = {_EXAMPLES}}}",
                *(line for operation in operations(whole) for line in self.rules(operation, whole)),
                "",
            )
        )

    def rules(self, operation: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[str]:
        kinds = operation.get("x-key-kinds")
        if not kinds:
            return
        # The kind that may do the most, of those that may.
        kind = next(each for each in ("tenant", "platform", "admin") if each in kinds)
        yield "[[operations]]"
        yield f"include-operation-id = {json.dumps(operation['operationId'])}"
        yield f"headers = {{X-API-Key = {json.dumps(self.keys[kind])}}}"
        if is_tolerant(operation, whole):
            # Almost everything is good there, and its thousands of cases say nothing new.
            yield "[operations.phases.coverage]"
            yield "enabled = false"
            yield "[operations.checks.negative_data_rejection]"
            yield "enabled = false"
        names = {f"{each['in']}.{each['name']}" for each in operation.get("parameters", ())}
        words = {name: word for name, word in _WORDS.items() if name in names}
        if names:
            yield "[operations.parameters]"
            yield from (f"{json.dumps(name)} = {json.dumps(word)}" for name, word in words.items())
            for name in _KNOWN:
                if f"path.{name}" in names:
                    yield f'"path.{name}" = {{dictionary = "{name}", probability = 0.8}}'


def operations(whole: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All operations of a document."""
    for methods in whole["paths"].values():
        yield from methods.values()


def is_tolerant(operation: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether there is something in its body of which no value is refused."""
    seen: set[str] = set()
    waiting = [json.dumps(operation.get("requestBody", {}))]
    while waiting:
        text = waiting.pop()
        if '"x-tolerant"' in text:
            return True
        names = {*re.findall(r'"#/components/schemas/(\w+)"', text)} - seen
        seen |= names
        waiting += [json.dumps(whole["components"]["schemas"][name]) for name in names]
    return False
