"""Which posd a command is about: its configuration, and the database that this leads to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
from attrs import frozen

from posd.config.model import Config, DeliveryConfig, LimitsConfig, load
from posd.database import dsn

DEFAULT_CONFIG: Final = Path("/etc/posd/posd.toml")


@frozen
class Installation:
    """What the options before the command have named; nothing is read before it is needed."""

    config_path: Path
    given_dsn: str | None
    environ: Mapping[str, str]

    def config(self) -> Config:
        """The configuration. Raises `ConfigError`."""
        return load(self.config_path, self.environ, dsn_problem=dsn.find_problem)

    def dsn(self) -> str:
        """The connection that the daemon has too, unless `--dsn` named another."""
        return self.given_dsn or self.config().database.dsn

    def admin_dsn(self) -> str:
        """The connection for changing schemas: `database.pool.admin_dsn` where there is one."""
        if self.given_dsn:
            return self.given_dsn
        database = self.config().database
        return database.admin_dsn or database.dsn

    def event_bytes(self) -> int:
        """How large an event may be; the default where a configuration is not read."""
        return (LimitsConfig() if self.given_dsn else self.config().limits).event_bytes

    def retention(self) -> float:
        """How many seconds events are kept; the default where a configuration is not read."""
        return (DeliveryConfig() if self.given_dsn else self.config().delivery).retention


pass_installation = click.make_pass_decorator(Installation)


class DsnParameter(click.ParamType[str]):
    """A connection string that libpq can read."""

    name = "dsn"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        problem = dsn.find_problem(value) if value.strip() else "it is empty"
        if problem is not None:
            meant = 'write a connection string such as "postgresql:///posd" or "dbname=posd"'
            self.fail(f"libpq refuses it: {problem}; {meant}", param, ctx)
        return value
