"""The description of the API, tested by schemathesis.

schemathesis makes valid and invalid requests from `/openapi.json` and checks every answer: no 5xx, no
undescribed status, header, content type or body, no refusal of valid data, no success with invalid data,
no other methods, and no call without its key.
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
    # The key to revoke. A random one could be a key that is used here.
    "query.id": 2**31 - 1,
}
"""Values for parameters of which random ones would lead nowhere or take long."""
_KNOWN = {"cardNumber": "GC-7Q4M-2XKD", "phone": "+447700900123", "orderId": "A-2"}
"""Existing values for the parts of addresses. They are used four times out of five."""
_TRUE_TO_TYPE = [200, 201, 400, 401, 403, 404, 409, 422]
"""Statuses that a valid request may have: a schema does not know the balance of a card."""


class SchemathesisTests(SynchronousTestCase):
    """A shop whose posd gets all kinds of requests."""

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
        """Sell a card and open an account, so that they can be asked for."""
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
        # All operations except the description itself, which is read first.
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
        """Return the configuration of schemathesis, with a key of the right kind for each call."""
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
        # The allowed kind with the most rights.
        kind = next(each for each in ("tenant", "platform", "admin") if each in kinds)
        yield "[[operations]]"
        yield f"include-operation-id = {json.dumps(operation['operationId'])}"
        yield f"headers = {{X-API-Key = {json.dumps(self.keys[kind])}}}"
        if is_tolerant(operation, whole):
            # Almost all data is valid there, and thousands of cases would show nothing new.
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
    """Return all operations of a document."""
    for methods in whole["paths"].values():
        yield from methods.values()


def is_tolerant(operation: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Return whether the body has a member of which no value is refused."""
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
