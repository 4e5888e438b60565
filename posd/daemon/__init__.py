"""The process: start, wiring, reload, systemd and stop.

Rules of delivery or publishing do not belong here, only which object gets which other one, and when.
"""
