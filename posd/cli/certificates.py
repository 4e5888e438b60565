"""`posctl make-cert`: TLS for a network that has no certificate authority."""

from __future__ import annotations

import os
from pathlib import Path

import click

from posd import certificates
from posd.cli.failures import Failure
from posd.cli.output import as_json, print_json
from posd.jsontext import timestamp


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
    required=True,
    help="A host name or IP address by which the tills call posd; may be repeated.",
)
@click.option(
    "--days",
    type=click.IntRange(1, certificates.LONGEST_DAYS),
    default=certificates.LONGEST_DAYS,
    show_default=True,
    help="How long the server's certificate is valid.",
)
@click.option("--replace", is_flag=True, help="Replace a server certificate that is there.")
@as_json
def make_cert(
    directory: Path, names: tuple[str, ...], days: int, replace: bool, as_json: bool
) -> None:
    """Make a private CA and a server certificate.

    For a shop's own network, where no public authority can help. The authority in the directory is
    used again if there is one, so that a renewal (`--replace`, then reload posd) needs no change on
    the tills. Give ca.pem to the tills; fullchain.pem and privkey.pem are for the [tls] section of
    posd's configuration; keep ca-key.pem somewhere safe.

    \b
    Examples:
        posctl make-cert --dir /etc/posd/tls --name pos.kitchen.lan --name 192.168.1.10
        posctl make-cert --dir /etc/posd/tls --name pos.kitchen.lan --replace
    """
    try:
        made = certificates.make(directory, names, days=days, replace=replace)
    except certificates.NotCertifiable as error:
        raise Failure(str(error), os.EX_USAGE) from error
    except certificates.CertificateError as error:
        raise Failure(str(error), os.EX_CANTCREAT) from error
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
    click.echo(f"For the tills:     {made.ca_path}")
    click.echo(f"tls.certificate:   {made.certificate_path}")
    click.echo(f"tls.private_key:   {made.key_path}")
    click.echo(f"Renew it before {made.expires_at:%d %B %Y}, with --replace.")
