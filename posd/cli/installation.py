"""The installation that a command works on: its configuration and its database."""

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
    """The options before the command. The configuration file is read when it is needed."""

    config_path: Path
    given_dsn: str | None
    environ: Mapping[str, str]

    def config(self) -> Config:
        """Read the configuration. Raises `ConfigError`."""
        return load(self.config_path, self.environ, dsn_problem=dsn.find_problem)

    def dsn(self) -> str:
        """Return `--dsn`, or the connection string of the daemon."""
        return self.given_dsn or self.config().database.dsn

    def admin_dsn(self) -> str:
        """Return the connection string for changes of schemas: `--dsn`, `admin_dsn` or `dsn`."""
        if self.given_dsn:
            return self.given_dsn
        database = self.config().database
        return database.admin_dsn or database.dsn

    def event_bytes(self) -> int:
        """Return the maximal size of an event. With `--dsn` it is the default."""
        return (LimitsConfig() if self.given_dsn else self.config().limits).event_bytes

    def retention(self) -> float:
        """Return for how many seconds events are kept. With `--dsn` it is the default."""
        return (DeliveryConfig() if self.given_dsn else self.config().delivery).retention


pass_installation = click.make_pass_decorator(Installation)


class DsnParameter(click.ParamType[str]):
    """A connection string that libpq can parse."""

    name = "dsn"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        problem = dsn.find_problem(value) if value.strip() else "it is empty"
        if problem is not None:
            meant = 'write a connection string such as "postgresql:///posd" or "dbname=posd"'
            self.fail(f"libpq cannot parse it: {problem}; {meant}", param, ctx)
        return value
