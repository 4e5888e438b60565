"""Registers `twistd posd`. Twisted imports `posd.tap` only when that command runs."""

from twisted.application.service import ServiceMaker

posd = ServiceMaker(
    "posd",
    "posd.tap",
    "Delivers a restaurant's online orders to its tills.",
    "posd",
)
