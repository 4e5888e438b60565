"""Loads the configuration from TOML files into frozen values, or reports all problems at once.

The classes define the configuration: a field is a key, its default is the default of the key, and its
annotation is the type of the value. `load` reads the main file, then the `*.toml` files of `conf.d` in the
same folder by name. A later file overrides the keys of earlier ones. A `[[listen]]` with the name of an
earlier one changes that listener; with another name it adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from attrs import NOTHING, evolve, field, fields_dict, frozen

from posd.config import endpoints as endpoint_syntax
from posd.config.files import ConfigTable, ConfigTables, Problems, find_files, parse
from posd.config.types import (
    BooleanValue,
    ChoiceValue,
    DsnValue,
    DurationValue,
    EndpointValue,
    IntegerValue,
    NameValue,
    Network,
    NetworksValue,
    PathValue,
    SizeValue,
    ValueType,
    displayed,
    read_value,
)
from posd.config.units import DAY, KIB, MIB, format_size
from posd.errors import ConfigError

_LEVELS = ("debug", "info", "warn", "error", "critical")


@frozen
class DatabaseConfig:
    """`[database]`: the connections to PostgreSQL. `statement_timeout` is in seconds.

    `reader_dsn` is used to read the shops' own tables; None means `dsn` with the user posd_reader.
    `admin_dsn` is used by posctl commands that need more rights than the daemon; None means `dsn`.
    """

    dsn: Annotated[str, DsnValue()] = field(repr=False)
    pool_size: Annotated[int, IntegerValue(2)] = 8
    statement_timeout: Annotated[float, DurationValue("100ms", "5m")] = 5.0
    reader_dsn: Annotated[str | None, DsnValue()] = field(default=None, repr=False)
    admin_dsn: Annotated[str | None, DsnValue()] = field(default=None, repr=False)


@frozen
class ListenerConfig:
    """`[[listen]]`: a listener. `endpoint` is an endpoint description of Twisted.

    `trusted` allows local programs to connect without a key. `proxies` are the networks whose
    X-Forwarded-For headers are trusted.
    """

    name: Annotated[str, NameValue()]
    endpoint: Annotated[str, EndpointValue()]
    tls: Annotated[bool, BooleanValue()] = False
    trusted: Annotated[bool, BooleanValue()] = False
    proxies: Annotated[tuple[Network, ...], NetworksValue()] = ()


@frozen
class TLSConfig:
    """`[tls]`: paths of PEM files, and the versions and cipher suites of TLS.

    `legacy_ciphers` adds suites of TLS 1.2 without authenticated encryption or without forward secrecy.
    """

    certificate: Annotated[str | None, PathValue()] = None
    private_key: Annotated[str | None, PathValue()] = None
    minimum_version: Annotated[Literal["1.2", "1.3"], ChoiceValue("1.2", "1.3")] = "1.2"
    legacy_ciphers: Annotated[bool, BooleanValue()] = False
    client_ca: Annotated[str | None, PathValue()] = None


@frozen
class DeliveryConfig:
    """`[delivery]`: `heartbeat` and `retention` are in seconds, `send_queue_bytes` is in bytes per till."""

    heartbeat: Annotated[float, DurationValue("1s", "10m")] = 30.0
    send_queue_bytes: Annotated[int, SizeValue("2KiB", "1GiB")] = 256 * KIB
    retention: Annotated[float, DurationValue("1h", "3650d")] = 30 * DAY


@frozen
class LimitsConfig:
    """`[limits]`: sizes are in bytes; the names of rates contain their unit."""

    event_bytes: Annotated[int, SizeValue("1KiB", "1MiB")] = 128 * KIB
    send_queue_total: Annotated[int, SizeValue("1MiB", "1024GiB")] = 256 * MIB
    connections: Annotated[int, IntegerValue()] = 20_000
    connections_per_tenant: Annotated[int, IntegerValue()] = 200
    failed_auth_per_minute: Annotated[int, IntegerValue()] = 20
    publish_per_second_per_tenant: Annotated[int, IntegerValue()] = 200
    requests_per_second_per_credential: Annotated[int, IntegerValue()] = 50
    bytes_per_second_per_credential: Annotated[int, SizeValue("16KiB", "1GiB")] = MIB
    requests_per_second_per_address: Annotated[int, IntegerValue()] = 200
    points_per_day_per_till: Annotated[int, IntegerValue()] = 100_000


@frozen
class LoggingConfig:
    """`[logging]`: the lowest level that is logged, and the format of log lines."""

    level: Annotated[str, ChoiceValue(*_LEVELS)] = "info"
    format: Annotated[str, ChoiceValue("journal", "json", "text")] = "journal"


@frozen
class Config:
    """The whole configuration."""

    database: DatabaseConfig
    listen: tuple[ListenerConfig, ...] = (
        ListenerConfig("https", r"tcp:port=9010:interface=\:\:", tls=True),
    )
    tls: TLSConfig = TLSConfig()
    delivery: DeliveryConfig = DeliveryConfig()
    limits: LimitsConfig = LimitsConfig()
    logging: LoggingConfig = LoggingConfig()


_SECTIONS: Mapping[str, type[Any]] = {
    name: section_type for name, section_type in get_type_hints(Config).items() if name != "listen"
}


_TLSProblems = Callable[[TLSConfig], Mapping[str, str]]
_DSNProblem = Callable[[str], str | None]


def load(
    path: Path,
    environ: Mapping[str, str],
    tls_problems: _TLSProblems | None = None,
    dsn_problem: _DSNProblem | None = None,
) -> Config:
    """Load the configuration from the main file and `conf.d`. Raises ConfigError with all problems.

    A problem is one line: the file, the dotted key, the problem and a hint. It never shows a value that may
    be secret. `environ` must have `CREDENTIALS_DIRECTORY` if the files use credentials.

    The functions check values that this package does not understand. `tls_problems` returns the problems of
    `[tls]` by key, and is called if a listener has TLS. `dsn_problem` returns the problem of a connection
    string, or None.
    """
    report = Problems()
    files = find_files(path, report)
    documents = [parse(file, report) for file in files]
    has_unread_files = bool(report)

    sections = {
        name: ConfigTable(name, path, fields_dict(section_type))
        for name, section_type in _SECTIONS.items()
    }
    tables = ConfigTables(report, sections, fields_dict(ListenerConfig))
    for file, document in zip(files, documents, strict=True):
        tables.add(file, document)
    config = _build(tables, environ, report)

    if (
        not has_unread_files
    ):  # An unread file might have the missing keys, or resolve contradictions.
        origins = tables.origins()
        labels = [table.label for table in tables.listeners.values()] or ["listen"]
        complaints = [*_missing_keys(tables), *_contradictions(config, labels)]
        if tls_problems is not None and any(listener.tls for listener in config.listen):
            tls_found = tls_problems(config.tls)
            complaints += [(f"tls.{key}", "tls", text) for key, text in tls_found.items()]
        if dsn_problem is not None:
            complaints += _unusable_dsns(config.database, dsn_problem)
        for key, other, text in complaints:
            if report.keys.isdisjoint((key, other)):
                report.add(origins.get(key) or origins.get(other) or path, key, text)
    if report:
        raise ConfigError(report.lines(files))
    return config


def _value_types(section_type: type[Any]) -> dict[str, ValueType]:
    hints = get_type_hints(section_type, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items()}


def _required(section_type: type[Any]) -> list[str]:
    return [
        key for key, attribute in fields_dict(section_type).items() if attribute.default is NOTHING
    ]


def _build(tables: ConfigTables, environ: Mapping[str, str], report: Problems) -> Config:
    """Create the configuration from the tables, and report unusable values."""

    def value(section_type: type[Any], table: ConfigTable) -> Any:
        # Missing required values become empty strings, so that the other values can still be checked.
        values: dict[str, object] = dict.fromkeys(_required(section_type), "")
        value_types = _value_types(section_type)
        for key, (file, raw) in table.values.items():
            try:
                values[key] = read_value(value_types[key], raw, environ)
            except ValueError as error:
                report.add(file, f"{table.label}.{key}", str(error))
        return section_type(**values)

    config = Config(
        **{
            name: value(section_type, tables.sections[name])
            for name, section_type in _SECTIONS.items()
        }
    )
    listeners = tuple(value(ListenerConfig, table) for table in tables.listeners.values())
    return evolve(config, listen=listeners) if listeners else config


_Complaint = tuple[str, str, str]
"""A dotted key, another key that the complaint depends on, and the problem of the first key."""


def _missing_keys(tables: ConfigTables) -> Iterator[_Complaint]:
    """Yield the required keys that no file has."""
    typed = [(_SECTIONS[name], table) for name, table in tables.sections.items()]
    typed += [(ListenerConfig, table) for table in tables.listeners.values()]
    for section_type, table in typed:
        value_types = _value_types(section_type)
        for key in _required(section_type):
            if key not in table.values:
                yield f"{table.label}.{key}", table.label, f"is missing; {value_types[key].meant}"


def _unusable_dsns(database: DatabaseConfig, find_problem: _DSNProblem) -> Iterator[_Complaint]:
    for key in ("dsn", "reader_dsn", "admin_dsn"):
        dsn = getattr(database, key)
        problem = find_problem(dsn) if dsn else None
        if problem is not None:
            what = f"the value (not shown) is refused by libpq: {problem}"
            yield f"database.{key}", "database", f"{what}; {DsnValue.meant}"


def _contradictions(config: Config, labels: Sequence[str]) -> Iterator[_Complaint]:
    """Yield values that are valid alone but not together. `labels` are the names of the listeners."""
    delivery, limits = config.delivery, config.limits
    if delivery.send_queue_bytes < 2 * limits.event_bytes:
        what = f'"{format_size(delivery.send_queue_bytes)}" is less than twice limits.event_bytes'
        meant = f'write at least "{format_size(2 * limits.event_bytes)}"'
        yield "delivery.send_queue_bytes", "limits.event_bytes", f"{what}; {meant}"
    if limits.send_queue_total < delivery.send_queue_bytes:
        what = (
            f'"{format_size(limits.send_queue_total)}" is less than one delivery.send_queue_bytes'
        )
        meant = f'write at least "{format_size(delivery.send_queue_bytes)}"'
        yield "limits.send_queue_total", "delivery.send_queue_bytes", f"{what}; {meant}"
    for label, listener in zip(labels, config.listen, strict=True):
        if listener.tls:
            yield from _missing_pem(config.tls, listener.name, label)
        if listener.trusted:
            yield from _unsafe_trust(listener, label)
    yield from _collisions(config.listen, labels)


def _collisions(listeners: Sequence[ListenerConfig], labels: Sequence[str]) -> Iterator[_Complaint]:
    """Yield the listeners whose socket an earlier listener already uses."""
    earlier: list[tuple[str, ListenerConfig]] = []
    for label, listener in zip(labels, listeners, strict=True):
        for first_label, first in earlier:
            if listener.endpoint and endpoint_syntax.collide(first.endpoint, listener.endpoint):
                what = f"{displayed(listener.endpoint)} is already used by {first_label}"
                meant = "give each listener an address or a port of its own"
                yield f"{label}.endpoint", f"{first_label}.endpoint", f"{what}; {meant}"
                break
        if listener.endpoint:
            earlier.append((label, listener))


def _missing_pem(tls: TLSConfig, name: str, label: str) -> Iterator[_Complaint]:
    for key, path in (("certificate", tls.certificate), ("private_key", tls.private_key)):
        if path is None:
            what = f'is missing, and the listener "{name}" has tls = true'
            yield f"tls.{key}", f"{label}.tls", f"{what}; {PathValue.meant}"


def _unsafe_trust(listener: ListenerConfig, label: str) -> Iterator[_Complaint]:
    """Yield the reasons why a trusted listener would be open to more than the group of local programs."""
    trusted = f"{label}.trusted"
    if listener.tls:
        what = "true does not go with trusted = true"
        yield f"{label}.tls", trusted, f"{what}; local programs need no TLS, so leave it out"
    if listener.proxies:
        what = "proxies do not go with trusted = true"
        yield f"{label}.proxies", trusted, f"{what}; their requests are not local"
    if not listener.endpoint:
        return
    endpoint = endpoint_syntax.read(listener.endpoint)
    if not endpoint_syntax.is_local(endpoint):
        what = f"{displayed(listener.endpoint)} does not go with trusted = true; other machines can reach it"
        meant = "write a unix socket or a loopback interface"
        yield f"{label}.endpoint", trusted, f"{what}; {meant}"
    if endpoint_syntax.is_world_writable(endpoint):
        what = f"{displayed(listener.endpoint)} with trusted = true is open to every user of this machine"
        yield f"{label}.endpoint", trusted, f'{what}; write "mode=660" or less'
