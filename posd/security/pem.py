"""Reads and checks PEM files of certificates and private keys.

`cryptography` parses them, because its errors are clearer than OpenSSL's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from attrs import define, field, frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from posd import errors, files

Key = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

_T = TypeVar("_T")


class UnusableFiles(errors.StartError):
    """Files that cannot be used. `problems` has one line for each name, such as a configuration key."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(problems.values()))
        self.problems = problems


@frozen
class TLSIdentity:
    """A certificate and its private key. `chain` has the certificate first, then its issuers."""

    chain: Sequence[x509.Certificate]
    # A key read twice does not compare equal. The key belongs to the certificate, which is compared.
    key: Key = field(repr=False, eq=False)


@define
class PEMReading:
    """Reads several files and collects their problems, so that all of them are reported at once.

    A problem is stored under the name that the caller gives, such as a configuration key. A method returns
    None for a path that is None and for an unusable file. `raise_problems` raises if there was a problem.
    """

    problems: dict[str, str] = field(init=False, factory=dict)

    def certificates(self, name: str, path: str | None) -> Sequence[x509.Certificate] | None:
        return self._read(name, path, _certificates)

    def identity(
        self, names: tuple[str, str], certificate: str | None, key: str | None
    ) -> TLSIdentity | None:
        """Read a certificate and its key. `names` are the names of the two files."""
        chain = self._read(names[0], certificate, _certificates)
        private = self._read(names[1], key, _private_key)
        if chain is None or private is None:
            return None
        own = private.public_key()
        if chain[0].public_key() == own:
            return TLSIdentity(chain, private)
        if any(issuer.public_key() == own for issuer in chain[1:]):
            what = f"{certificate} begins with another certificate than that of {key}"
            self.problems[names[0]] = f"{what}; put that first and its issuers after it"
        else:
            what = f"{key} does not belong to {certificate}"
            self.problems[names[1]] = f"{what}; give the key that the certificate was made for"
        return None

    def raise_problems(self) -> None:
        """Raise `UnusableFiles` if there was a problem."""
        if self.problems:
            raise UnusableFiles(self.problems)

    def _read(self, name: str, path: str | None, parse: Callable[[str, bytes], _T]) -> _T | None:
        if path is None:
            return None
        try:
            return parse(path, _read_file(path))
        except errors.StartError as error:
            self.problems[name] = str(error)
            return None


def authorities(path: Path) -> Sequence[x509.Certificate]:
    """Return the certificates in a file. Raises `UnusableFiles` if there are none."""
    reading = PEMReading()
    found = reading.certificates("authorities", str(path))
    reading.raise_problems()
    return found or ()


def _read_file(path: str) -> bytes:
    try:
        return files.read_file(Path(path))
    except OSError as error:
        remedy = {
            errno.ENOENT: "put it there, or make one with `posctl make-cert`",
            errno.EACCES: "let posd read it: owner root, group posd, mode 0640",
        }.get(error.errno or 0, "give the path of a PEM file")
        raise errors.StartError(f"{path} cannot be read ({error.strerror}); {remedy}") from error


def _certificates(path: str, pem: bytes) -> Sequence[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        _raise_unusable(
            path, "has no readable certificate", "it must be PEM, -----BEGIN CERTIFICATE-----"
        )


def _private_key(path: str, pem: bytes) -> Key:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        _raise_unusable(
            path, "is encrypted", "store the key without a password, readable by posd only"
        )
    except (ValueError, UnsupportedAlgorithm):
        _raise_unusable(
            path, "has no readable private key", "it must be PEM, -----BEGIN PRIVATE KEY-----"
        )
    if not isinstance(key, Key):
        _raise_unusable(path, "is not a key that can sign", "use ECDSA P-256 or RSA")
    return key


def _raise_unusable(path: str, problem: str, remedy: str) -> NoReturn:
    raise errors.StartError(f"{path} {problem}; {remedy}")
