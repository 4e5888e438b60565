"""PEM files with certificates and keys: each is read once, checked, and named where it cannot be used.

PEM is understood by `cryptography`, whose sentences about what is wrong are better than OpenSSL's.
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
    """Files that cannot be used; `problems` has a line for each name that is to blame."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("\n".join(problems.values()))
        self.problems = problems


@frozen
class TLSIdentity:
    """A certificate, which is the first of `chain` and followed by its issuers', and its key."""

    chain: Sequence[x509.Certificate]
    # Never equal to itself read again; it is the certificate's, so that says enough.
    key: Key = field(repr=False, eq=False)


@define
class PEMReading:
    """Files that are read together, so that everything wrong with them is told at once.

    Each file is read under the name that is to blame for it, such as the key of the configuration.
    A file that is not asked for, or that cannot be used, is None; `raise_problems` raises for the latter.
    """

    problems: dict[str, str] = field(init=False, factory=dict)

    def certificates(self, name: str, path: str | None) -> Sequence[x509.Certificate] | None:
        return self._read(name, path, _certificates)

    def identity(
        self, names: tuple[str, str], certificate: str | None, key: str | None
    ) -> TLSIdentity | None:
        """A certificate and its key, each by the one of the two names that is its."""
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
    """The certificates in a file. Raises `UnusableFiles` if it has none."""
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
