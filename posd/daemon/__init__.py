"""The process: start, wiring, reload, systemd and stop.

This package creates the objects and starts and stops them. It has no rules of delivery or publishing.
"""
