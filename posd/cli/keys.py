"""`posctl key`: the credentials of tills, platforms and operators."""

from __future__ import annotations

import os
from datetime import timedelta

import click
from attrs import field, frozen

from posd.cli import database
from posd.cli.failures import CommandFailure
from posd.cli.installation import Installation, pass_installation
from posd.cli.output import as_json, local_time, print_json, print_table, timestamp_or_none
from posd.cli.parameters import DURATION, ID, SLUG
from posd.cli.tenants import find_tenant
from posd.security import api_keys as keys
from posd.store import credentials
from posd.store.credentials import ListedKey
from posd.values import KeyKind

_LONGEST_DEVICE_ID = 128


@click.group()
def key() -> None:
    """Create, list and revoke keys.

    A key is shown once, when it is created; the database has only its hash.
    """


@key.command()
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in KeyKind]),
    required=True,
    help="device: one till. tenant: any till of a shop. platform: the web shop that places orders."
    " admin: operators and monitoring.",
)
@click.option(
    "--tenant",
    "slug",
    type=SLUG,
    help="The shop. Keys for platforms and admins without one are for all shops.",
)
@click.option("--device", help="The name of the till, for a device key.")
@click.option(
    "--expires",
    type=DURATION,
    metavar="TIME",
    help="How long the key is valid, such as 90d; without it, until it is revoked.",
)
@as_json
@pass_installation
def create(
    installation: Installation,
    kind: str,
    slug: str | None,
    device: str | None,
    expires: float | None,
    as_json: bool,
) -> None:
    """Create a key and show it, this once.

    To replace a till's key, create a second one, configure the till, then revoke the first: both
    are valid in between.

    \b
    Examples:
        posctl key create --kind device --tenant kitchen --device POS_1
        posctl key create --kind platform --expires 90d --json
    """
    _check(KeyKind(kind), slug, device, expires)
    lifetime = None if expires is None else timedelta(seconds=expires)
    with database.open_executor(installation.dsn()) as executor:
        issued = issue(executor, KeyKind(kind), slug, device, lifetime)
    if as_json:
        print_json({"key": issued.secret, "id": issued.id})
        return
    click.echo(issued.secret)
    click.echo(f"This is key {issued.id}, shown this once: posd has only its hash.", err=True)


@key.command("list")
@click.option("--tenant", "slug", type=SLUG, help="Only the keys of this shop.")
@as_json
@pass_installation
def list_(installation: Installation, slug: str | None, as_json: bool) -> None:
    """List keys: whose they are, whether they are valid, when they were last used.

    A weak key is one that posd did not make, such as one of an older system: it may be guessable.
    Replace it when you can.

    \b
    Examples:
        posctl key list --tenant kitchen
        posctl key list --json | jq '.[] | select(.weak and .state == "valid")'
    """
    with database.open_executor(installation.dsn()) as executor:
        if slug is not None:
            find_tenant(executor, slug)
        listed = database.run_to_completion(credentials.list_keys(executor, slug))
    if as_json:
        print_json([_shape(each) for each in listed])
        return
    print_table(
        ("id", "tenant", "kind", "device", "key", "state", "expires", "last used"),
        [
            (
                each.id,
                "(all)" if each.slug is None else each.slug,
                each.kind.value,
                each.device_id,
                each.preview,
                f"{each.state}, weak" if each.weak else each.state,
                local_time(each.expires_at),
                local_time(each.last_used_at),
            )
            for each in listed
        ],
    )


@key.command()
@click.argument("key_id", metavar="ID", type=ID)
@as_json
@pass_installation
def revoke(installation: Installation, key_id: int, as_json: bool) -> None:
    """Revoke a key, at once and for good.

    Connections that were opened with it are closed within a second. `posctl key list` has the ids.

    \b
    Example:
        posctl key revoke 7
    """
    with database.open_executor(installation.dsn()) as executor:
        if not database.run_to_completion(credentials.revoke(executor, key_id)):
            raise CommandFailure(f"there is no key {key_id} that could be revoked", os.EX_DATAERR)
    if as_json:
        print_json({"id": key_id, "revoked": True})
    else:
        click.echo(f"Key {key_id} is revoked.")


@frozen
class IssuedKey:
    """A new key: the only time that anybody sees it."""

    id: int
    secret: str = field(repr=False)


def issue(
    executor: database.BlockingExecutor,
    kind: KeyKind,
    slug: str | None = None,
    device: str | None = None,
    lifetime: timedelta | None = None,
) -> IssuedKey:
    """Make a key and store its hash; a `CommandFailure` if there is no such tenant."""
    tenant = None if slug is None else find_tenant(executor, slug)
    made = keys.make()
    stored = credentials.create(executor, tenant, kind, device, made.sha256, made.preview, lifetime)
    return IssuedKey(database.run_to_completion(stored).id, made.secret)


def _check(kind: KeyKind, slug: str | None, device: str | None, expires: float | None) -> None:
    if kind in (KeyKind.DEVICE, KeyKind.TENANT) and slug is None:
        raise click.UsageError(f"A {kind.value} key needs --tenant.", click.get_current_context())
    if (kind is KeyKind.DEVICE) != (device is not None):
        raise click.UsageError(
            "A device key needs --device, and no other key takes it.", click.get_current_context()
        )
    if device is not None and not 0 < len(device) <= _LONGEST_DEVICE_ID:
        raise click.BadParameter(
            f"the name of a device has 1 to {_LONGEST_DEVICE_ID} characters.",
            click.get_current_context(),
            param_hint="--device",
        )
    if expires is not None and expires <= 0:
        raise click.BadParameter(
            "the key would never be valid.", click.get_current_context(), param_hint="--expires"
        )


def _shape(listed: ListedKey) -> dict[str, object]:
    """A key as programs read it."""
    return {
        "id": listed.id,
        "tenant": listed.slug,
        "kind": listed.kind.value,
        "device": listed.device_id,
        "preview": listed.preview,
        "weak": listed.weak,
        "state": listed.state,
        "notBefore": timestamp_or_none(listed.not_before),
        "expiresAt": timestamp_or_none(listed.expires_at),
        "revokedAt": timestamp_or_none(listed.revoked_at),
        "lastUsedAt": timestamp_or_none(listed.last_used_at),
    }
