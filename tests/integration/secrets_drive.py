"""Send all kinds of requests with recognisable values.

Every operation of the description is called, so that new ones are included: with keys of every kind,
wrong, revoked and misplaced keys, with valid and invalid bodies, and with cards, telephone numbers and
customers in the path, query, headers and body. Besides, all kinds of WebSocket messages, streams, polls
and data that is not HTTP. The answers are recorded.
"""

from __future__ import annotations

import json
import secrets
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from attrs import define, field, frozen

from tests.integration.canaries import Canary
from tests.integration.harness import Daemon, Shop
from tests.integration.peer import BINARY, CLOSE, PING, TEXT, Answer, HungUp, Peer, frame, request

KINDS: Final = ("tenant", "device", "platform", "admin")
ORDER: Final = "W-77"
DEVICE: Final = "front"

CARD: Final = Canary("a card", "QXZJVWKQPFXH9247", 4)
PHONE: Final = Canary("a telephone number", "+447700900461", 8)
NATIONAL: Final = Canary("a telephone number as it is dialled", "07700900461", 8)
EMAIL: Final = Canary("an address of e-mail", "quxelberg@vzandtmoor.example", 11)
CUSTOMER: Final = Canary("a customer", "Quxelberg Vzandtmoor", 11)
PAYLOAD: Final = Canary("a payload", "jxqv-no-onions-zkwy-please", 11)
PASSWORD: Final = Canary("the password of the database", "wqzx-open-vjkq-sesame", 11)
CUSTOMERS: Final = (CARD, PHONE, NATIONAL, EMAIL, CUSTOMER, PAYLOAD, PASSWORD)

_BY_NAME: Final = {
    "cardnumber": CARD.text,
    "phone": NATIONAL.text,
    "customerphone": PHONE.text,
    "customeremail": EMAIL.text,
    "recipientemail": EMAIL.text,
    "email": EMAIL.text,
    "orderid": ORDER,
    "deviceid": DEVICE,
    "tenant": "kitchen",
}
_KEPT: Final = (
    *("type", "status", "date", "time", "currency", "kind", "at", "slug", "source", "expires"),
)
"""Endings of names of members whose values are not changed, because they would be refused otherwise."""
_MESSAGES: Final[Sequence[object]] = (
    {"type": "ping", "id": PAYLOAD.text, "timestamp": CUSTOMER.text},
    {"type": "pong", "note": PAYLOAD.text},
    {"type": "ack", "id": 0, "card": CARD.text},
    {"type": "ack", "id": CARD.text},
    {"type": "ack", "id": 10**15},
    {"type": "nack", "id": 1, "reason": f"{CUSTOMER.text} {CARD.text} {PHONE.text}"},
    {"type": "nack", "id": PHONE.text, "reason": PAYLOAD.text},
    {"type": "print", "orderId": ORDER, "status": "failed", "reason": PAYLOAD.text},
    {"type": "print", "orderId": CARD.text, "status": "printed", "reason": EMAIL.text},
    {"type": "print", "orderId": ORDER, "status": CARD.text},
    {"type": "sale", "cardNumber": CARD.text, "customer": CUSTOMER.text, "email": EMAIL.text},
    {"type": CARD.text, "note": PAYLOAD.text},
    {"type": "x" * 300, "note": PAYLOAD.text},
    {"type": 5, "note": PAYLOAD.text},
    {PAYLOAD.text: CARD.text},
    [CARD.text, PHONE.text],
    CUSTOMER.text,
)
"""Valid and invalid messages of a till."""


@frozen
class Asked:
    """A request and its answer. `rightly` names the values that the caller may see."""

    what: str
    answer: Answer


@define(eq=False)
class Drive:
    """A daemon, a shop `kitchen` with a neighbour, and all requests."""

    shop: Shop
    posd: Daemon
    asked: list[Asked] = field(init=False, factory=list)
    keys: dict[str, str] = field(init=False, factory=dict)
    operations: list[dict[str, Any]] = field(init=False, factory=list)
    given: Sequence[str] = field(init=False, default=())
    """The keys that are used."""
    _peer: Peer | None = field(init=False, default=None)
    _answered: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        for kind in KINDS:
            slug = None if kind == "admin" else "kitchen"
            self.keys[kind] = self.shop.key(kind, slug, DEVICE if kind == "device" else None)
        self.keys["revoked"] = self.shop.key("platform", "kitchen")
        self.keys["another's"] = self.shop.key("platform", "grill")
        self.keys["unknown"] = f"pos_{secrets.token_hex(32)}"
        self.keys["misplaced"] = self.shop.key("admin", None)
        self.keys["old"] = "Vintage-Zqxj-Key-Of-The-Column-7341"
        self.shop.query(
            "UPDATE dinedesk_main.pos_api_keys SET revoked_at = now()"
            " WHERE key_sha256 = sha256(convert_to(%s, 'UTF8'))",
            (self.keys["revoked"],),
        )
        self.shop.query(
            "UPDATE dinedesk_main.tenants SET pos_api_key = %s WHERE slug = 'kitchen'",
            (self.keys["old"],),
        )
        self.given = [*self.keys.values()]
        self.operations = [*described(self.posd)]

    @property
    def canaries(self) -> list[Canary]:
        """Return all values that must not be found."""
        keys = [Canary(f"a key ({name})", key, 11, is_key=True) for name, key in self.keys.items()]
        return [*CUSTOMERS, *keys]

    # -- HTTP --------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        address: str,
        key: str | None = None,
        body: object = None,
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """Send a request, with confidential values in all its other places too."""
        sent = {**self._decoys(), "Content-Type": "application/json", **headers}
        if key is not None:
            sent["X-API-Key"] = key
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        address += f"{'&' if '?' in address else '?'}apiKey={self.keys['misplaced']}&phone="
        address += f"{urllib.parse.quote(PHONE.text)}&note={urllib.parse.quote(PAYLOAD.text)}"
        answer = self._exchange(request(method, address, sent, raw))
        self.asked.append(Asked(f"{method} {address}", answer))
        self._keep_new_key(answer)
        return answer

    def _keep_new_key(self, answer: Answer) -> None:
        """A new key is shown once, and must not be found elsewhere."""
        if answer.status == 201 and b'"key":"' in answer.body:
            self.keys[f"made as the {len(self.keys)}th"] = answer.json["key"]

    def _decoys(self) -> dict[str, str]:
        misplaced = self.keys["misplaced"]
        return {
            "Cookie": f"key={misplaced}; card={CARD.text}",
            "Referer": f"https://shop.example/?key={misplaced}&card={CARD.text}",
            "User-Agent": f"{CUSTOMER.text} {EMAIL.text}",
            "X-Forwarded-For": CARD.text,
            "Proxy-Authorization": f"Bearer {misplaced}",
        }

    def _exchange(self, raw: bytes) -> Answer:
        for _ in range(2):
            if self._peer is None:
                self._peer = Peer.dial(self.posd)
            try:
                self._peer.send(raw)
                answer = self._peer.answer()
            except HungUp:
                self._hang_up()
                continue
            if answer.headers.get("connection") == "close":
                self._hang_up()
            return answer
        raise AssertionError(f"no answer to {raw[:200]!r}")

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._peer.close()
        self._peer = None

    def everything(self) -> None:
        """Call every operation in every way, and send everything else."""
        self.prepare()
        for operation in self.operations:
            self.with_keys(operation)
            self.with_bodies(operation)
            self.with_methods(operation)
        self.astray()
        self.streams()
        self.tills()

    def prepare(self) -> None:
        """Create an order, a card and an account to ask for."""
        platform = self.keys["platform"]
        order = {
            "orderId": ORDER,
            "totalAmount": 12.5,
            "customerName": CUSTOMER.text,
            "customerPhone": PHONE.text,
            "customerEmail": EMAIL.text,
            "notes": PAYLOAD.text,
            "items": [{"name": PAYLOAD.text, "price": 12.5, "quantity": 1}],
        }
        card = {"cardNumber": CARD.text, "amount": 50, "recipientName": CUSTOMER.text}
        self.ask("POST", "/api/kitchen/orders", platform, order)
        self.ask("POST", "/api/kitchen/gift-cards", platform, card)
        points = {"points": 50, "reason": CUSTOMER.text}
        self.ask("POST", f"/api/kitchen/loyalty/{NATIONAL.text}/add", platform, points)

    def with_keys(self, operation: Mapping[str, Any]) -> None:
        """Use every key and no key, in the right place and in wrong ones."""
        body = self.poisoned(operation)
        ask, method = self.ask, operation["method"]
        nobodys = self.values(phone=NATIONAL.text, slug="nobody")
        ask(method, self.bounded(address_of(operation, nobodys)), self.right_key(operation), body)
        address = self.bounded(address_of(operation, self.values()))
        misplaced = self.keys["misplaced"]
        for key in (None, *self.given):
            if key != misplaced:
                ask(method, address, key, body)
        for name in ("Authorization", "X-Api_Key", "X-Device-ID", "X-Tenant-ID"):
            ask(method, address, None, body, {name: misplaced})
        ask(method, address, None, body, {"Authorization": f"Bearer {self.keys['unknown']}"})

    def with_bodies(self, operation: Mapping[str, Any]) -> None:
        """Send partly valid and invalid bodies with a valid key."""
        key = self.right_key(operation)
        address = self.bounded(address_of(operation, self.values()))
        method, good = operation["method"], self.poisoned(operation)
        if method in ("GET", "DELETE"):
            for name in (*operation["query"], "after"):
                for value in (CARD.text, urllib.parse.quote(PHONE.text), "%ff" + CARD.text):
                    self.ask(method, f"{address}?{name}={value}", key)
            return
        text = json.dumps(good).encode()
        for body in (
            good,
            replaced(good, CARD.text),
            replaced(good, [CUSTOMER.text, {PAYLOAD.text: PHONE.text}]),
            {**good, CARD.text: PHONE.text, PAYLOAD.text: {CUSTOMER.text: EMAIL.text}},
            {PAYLOAD.text: CUSTOMER.text},
            [CARD.text],
            text[:-1] + b', "amount": ' + CARD.text.encode(),
            text[:-1] + b',"note":"' + CARD.text.encode() + b'\xff"}',
            text[:-1] + b',"amount":1e999999,"note":"' + PAYLOAD.text.encode() + b'"}',
            text + CARD.text.encode(),
            CARD.text.encode(),
        ):
            self.ask(method, address, key, body)
        for headers in (
            {"Content-Type": f"text/plain; note={CARD.text}"},
            {"Idempotency-Key": f"{CARD.text} {PHONE.text}"},
            {"Idempotency-Key": CARD.text, "X-Idempotency-Key": PHONE.text},
            {"Idempotency-Key": f"\xff{CARD.text}"},
            {"X-Tenant-ID": CUSTOMER.text},
            {"X-Device-ID": f"\x01{CUSTOMER.text}"},
        ):
            self.ask(method, address, key, good, headers)

    def with_the_right_body(self, operation: Mapping[str, Any]) -> None:
        """Send a valid body with a valid key."""
        address = self.bounded(address_of(operation, self.values()))
        key, body = self.right_key(operation), self.poisoned(operation)
        for headers in ({}, {"Idempotency-Key": f"I{len(self.asked)}"}):
            self.ask(operation["method"], address, key, body, headers)

    def with_methods(self, operation: Mapping[str, Any]) -> None:
        """Use methods that do not exist."""
        address = address_of(operation, self.values())
        for method in ("TRACE", CARD.text):
            self.ask(method, address, self.right_key(operation), self.poisoned(operation))

    def astray(self) -> None:
        """Use addresses that do not exist, and data that is not HTTP."""
        platform = self.keys["platform"]
        for path in (
            f"/{CARD.text}",
            f"/api/{CARD.text}/health",
            f"/api/{platform}/events",
            f"/api/kitchen/{CARD.text}/{urllib.parse.quote(PHONE.text)}",
            f"/api/kitchen/gift-cards/{CARD.text}%2f{CARD.text}/balance",
            f"/api/kitchen/gift-cards/{CARD.text}%ff/balance",
            f"/api/kitchen/gift-cards/{CARD.text * 20}/balance",
            f"/api/kitchen/loyalty/{CARD.text}/points",
            f"/api/kitchen/orders/{CARD.text}",
            f"/api/kitchen/orders/{CARD.text}%00",
            f"/ws/pos/{CARD.text}",
            f"/ws/pos/kitchen/{CARD.text}",
            f"/ws/pos/kitchen?last_event_id={CARD.text}&key={platform}",
        ):
            self.ask("GET", path, platform)
        named = f"HTTP/1.1\r\nHost: posd\r\nX-API-Key: {platform}\r\n"
        for raw in (
            f"GET /{CARD.text}\r\n\r\n",
            f"{CARD.text} {PAYLOAD.text} {platform}\r\n\r\n",
            f"GET / HTTP/1.1\r\nHost: posd\r\n{CARD.text}\r\nX-API-Key {platform}\r\n\r\n",
            f"GET / {named}Transfer-Encoding: {CARD.text}\r\n\r\n",
            f"POST /{CARD.text} HTTP/1.1\r\nHost: posd\r\nContent-Length: {CARD.text}\r\n\r\n",
            f"POST /broadcast {named}Content-Length: 99999999\r\n\r\n",
        ):
            self._hang_up()
            answer = self._exchange(raw.encode())
            self.asked.append(Asked(repr(raw), answer))

    # -- the stream, by every transport ------------------------------------------------------

    def streams(self) -> None:
        """Use server-sent events and polls."""
        key = self.keys["device"]
        for query in ("after=0", "after=0&limit=1", f"after=0&types={CARD.text}", "wait=0"):
            self.ask("GET", f"/api/kitchen/events?{query}", key)
        headers = [("X-API-Key", key), ("Last-Event-ID", "0")]
        with Peer.dial(self.posd) as peer:
            query = f"apiKey={self.keys['misplaced']}&note={urllib.parse.quote(PAYLOAD.text)}"
            peer.send(request("GET", f"/api/kitchen/events/stream?{query}", headers))
            peer.said_until(PAYLOAD.text.encode())

    def tills(self) -> None:
        """Open WebSockets that are refused, and WebSockets that send messages."""
        place = f"/ws/pos/kitchen?last_event_id=0&apiKey={self.keys['misplaced']}"
        for key in (None, *self.given):
            headers = {**self._decoys(), "Origin": f"https://{CARD.text}.example"}
            for named in ({}, {"X-Device-ID": DEVICE}, {"X-Tenant-ID": CARD.text}):
                given = {**headers, **named, **({} if key is None else {"X-API-Key": key})}
                with Peer.dial(self.posd) as peer:
                    answer = peer.upgrade(place, given)
                    if answer.status != 101:
                        self.asked.append(Asked(f"a till with {key}", answer))
                    else:
                        self.say(peer)
        closing = frame(CLOSE, (1000).to_bytes(2, "big") + f"{CARD.text} {PAYLOAD.text}".encode())
        spoken = PAYLOAD.text.encode()
        for last in (
            closing,
            frame(CLOSE, (4999).to_bytes(2, "big") + b"\xff" + spoken),
            frame(BINARY, spoken),
            frame(TEXT, b"\xff" + spoken),
            frame(TEXT, spoken, reserved=4),
            frame(TEXT, spoken * 4000),
            frame(PING, spoken, final=False),
        ):
            with Peer.dial(self.posd) as peer:
                peer.upgrade(place, {"X-API-Key": self.keys["tenant"]})
                peer.send(last)
                peer.close_code()

    def say(self, peer: Peer) -> None:
        """Send all messages of a till, until posd closes the connection."""
        for message in _MESSAGES:
            peer.send(frame(TEXT, json.dumps(message).encode()))
        peer.send(frame(TEXT, f'{{"type":"sale","note":"{PAYLOAD.text}'.encode()))
        peer.send(frame(PING, PAYLOAD.text.encode()))
        with suppress(HungUp):
            while peer.frame().payload != PAYLOAD.text.encode():
                pass

    # -- content of requests -----------------------------------------------------------------

    def values(self, **changed: str) -> dict[str, str]:
        """Return values for the parts of an address."""
        named = {
            "tenant": "kitchen",
            "slug": "kitchen",
            "cardNumber": CARD.text,
            "phone": PHONE.text,
            "orderId": ORDER,
            "deviceId": DEVICE,
        }
        return {**named, **changed}

    def right_key(self, operation: Mapping[str, Any]) -> str | None:
        kinds = operation["kinds"]
        return next((self.keys[kind] for kind in KINDS if kind in kinds), None)

    def bounded(self, address: str) -> str:
        """Return an address that is answered soon: a stream is requested with an invalid position."""
        return (
            f"{address}?stream_id={CARD.text}&after=0" if address.endswith("/stream") else address
        )

    def poisoned(self, operation: Mapping[str, Any]) -> dict[str, Any]:
        """Return the operation's own example with other people."""
        example = operation["example"] or {}
        if operation["path"] == "/api/admin/tenants":
            # The name of a shop is not confidential.
            return dict(example)
        return {name: _poisoned(name, value) for name, value in example.items()}


def described(posd: Daemon) -> Iterator[dict[str, Any]]:
    """Return every operation of the description."""
    whole = posd.request("GET", "/openapi.json").json
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            parameters = [each for each in operation.get("parameters", ()) if "name" in each]
            yield {
                "path": path,
                "method": method.upper(),
                "kinds": operation.get("x-key-kinds", ()),
                "example": content.get("application/json", {}).get("example"),
                "query": [each["name"] for each in parameters if each["in"] == "query"],
            }


def address_of(operation: Mapping[str, Any], values: Mapping[str, str]) -> str:
    """Return the address of an operation."""
    quoted = {name: urllib.parse.quote(value, safe="") for name, value in values.items()}
    address: str = operation["path"].format_map(quoted)
    return address


def replaced(value: Any, by: object) -> Any:
    """Return a value with all its scalars replaced."""
    match value:
        case dict():
            return {name: replaced(member, by) for name, member in value.items()}
        case list():
            return [replaced(each, by) for each in value]
        case _:
            return by


def _poisoned(name: str, value: Any) -> Any:
    simple = name.replace("_", "").lower()
    match value:
        case dict():
            return {each: _poisoned(each, member) for each, member in value.items()}
        case list():
            return [_poisoned(name, each) for each in value]
        case str() if simple in _BY_NAME:
            return _BY_NAME[simple]
        case str() if simple.endswith("name"):
            return CUSTOMER.text
        case str() if not simple.endswith(_KEPT):
            return PAYLOAD.text
        case _:
            return value
