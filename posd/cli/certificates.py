"""`posctl make-cert`: certificates of a private certificate authority."""

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
    help="The folder of the certificates. It is created if it does not exist.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="A host name or IP address that tills connect to. May be repeated.",
)
@click.option(
    "--client",
    metavar="NAME",
    help="Make a client certificate for a till: client-NAME.pem and client-NAME-key.pem.",
)
@click.option(
    "--days",
    type=click.IntRange(1, certificates.LONGEST_DAYS),
    default=certificates.LONGEST_DAYS,
    show_default=True,
    help="How many days the certificate is valid.",
)
@click.option("--replace", is_flag=True, help="Replace an existing certificate.")
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
    """Make a private certificate authority and a server or client certificate.

    Use this command in a network where no public authority issues certificates. If the folder has an
    authority, the command uses it. So a renewal with --replace needs no change on the tills. posd loads
    the new files by itself. Copy ca.pem to the tills. Name fullchain.pem and privkey.pem in the
    section [tls] of the configuration. Keep ca-key.pem in a safe place.

    If posd shall accept only tills with a client certificate, set client_ca in [tls] to the ca.pem of
    the authority that issues them: the one of this folder, or one in a folder of its own. Give each
    till its client files. A till with a certificate still needs its key.

    \b
    Examples:
        posctl make-cert --dir /etc/posd/tls --name pos.kitchen.lan --name 192.168.1.10
        posctl make-cert --dir /etc/posd/tls --name pos.kitchen.lan --replace
        posctl make-cert --dir ~/tills --client POS_1
    """
    if bool(names) == bool(client):
        raise click.UsageError(
            "Give --name for the certificate of posd, or --client for that of a till.", context
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
    click.echo(f"The certificate expires on {made.expires_at:%d %B %Y}. Renew it with --replace.")


def _show(made: IssuedCertificate, *, for_till: bool) -> None:
    if for_till:
        click.echo(f"tls.client_ca:     {made.ca_path}")
        click.echo(f"For the till:      {made.certificate_path}")
        click.echo(f"                   {made.key_path}")
    else:
        click.echo(f"For the tills:     {made.ca_path}")
        click.echo(f"tls.certificate:   {made.certificate_path}")
        click.echo(f"tls.private_key:   {made.key_path}")
