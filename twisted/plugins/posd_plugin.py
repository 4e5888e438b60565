"""Makes `twistd posd` known; `posd.tap` is imported only when it is asked for."""

from twisted.application.service import ServiceMaker

posd = ServiceMaker(
    "posd",
    "posd.tap",
    "Delivers a restaurant's online orders to its tills.",
    "posd",
)
