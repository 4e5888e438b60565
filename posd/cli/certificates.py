"""`posctl make-cert`: TLS for a network that has no certificate authority."""

from __future__ import annotations

import os
from pathlib import Path

import click

from posd.cli.failures import CommandFailure
from posd.cli.output import as_json, print_json
from posd.protocol.json_literals import timestamp
from posd.security import private_ca as certificates
from posd.security.private_ca import IssuedCertificate


@click.command("make-cert")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where the files are, or will be; it is made if need be.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="A host name or IP address by which the tills call posd; may be repeated.",
)
@click.option(
    "--client",
    metavar="NAME",
    help="Make a till's own certificate instead, in client-NAME.pem and client-NAME-key.pem.",
)
@click.option(
    "--days",
    type=click.IntRange(1, certificates.LONGEST_DAYS),
    default=certificates.LONGEST_DAYS,
    show_default=True,
    help="How long the certificate is valid.",
)
@click.option("--replace", is_flag=True, help="Replace a certificate that is there.")
@as_json
@click.pass_context
def make_cert(
    context: click.Context,
    directory: Path,
    names: tuple[str, ...],
    client: str | None,
    days: int,
    replace: bool,
    as_json: bool,
) -> None:
    """Make a private CA and a server certificate, or one for a till.

    For a shop's own network, where no public authority can help. The authority in the directory is
    used again if there is one, so that a renewal (`--replace`; posd takes the new files by itself)
    needs no change on the tills. Give ca.pem to the tills; fullchain.pem and privkey.pem are for the
    [tls] section of posd's configuration; keep ca-key.pem somewhere safe.

    Where posd is to let in only tills with a certificate, set client_ca in [tls] to the ca.pem of
    the authority that makes them, of this directory or of one of its own, and give each till its
    --client files. It needs its key for posd besides.

    \b
    Examples:
        posctl make-cert --dir /etc/posd/tls --name pos.kitchen.lan --name 192.168.1.10
        posctl make-cert --dir /etc/posd/tls --name pos.kitchen.lan --replace
        posctl make-cert --dir ~/tills --client POS_1
    """
    if bool(names) == bool(client):
        raise click.UsageError(
            "Give --name for posd's certificate, or --client for a till's.", context
        )
    try:
        if client:
            made = certificates.make_client(directory, client, days=days, replace=replace)
        else:
            made = certificates.make(directory, names, days=days, replace=replace)
    except certificates.NotCertifiable as error:
        raise CommandFailure(str(error), os.EX_USAGE) from error
    except certificates.CertificateError as error:
        raise CommandFailure(str(error), os.EX_CANTCREAT) from error
    if as_json:
        print_json(
            {
                "ca": str(made.ca_path),
                "certificate": str(made.certificate_path),
                "privateKey": str(made.key_path),
                "expiresAt": timestamp(made.expires_at),
            }
        )
        return
    _show(made, for_till=bool(client))
    click.echo(f"Renew it before {made.expires_at:%d %B %Y}, with --replace.")


def _show(made: IssuedCertificate, *, for_till: bool) -> None:
    if for_till:
        click.echo(f"tls.client_ca:     {made.ca_path}")
        click.echo(f"For the till:      {made.certificate_path}")
        click.echo(f"                   {made.key_path}")
    else:
        click.echo(f"For the tills:     {made.ca_path}")
        click.echo(f"tls.certificate:   {made.certificate_path}")
        click.echo(f"tls.private_key:   {made.key_path}")
