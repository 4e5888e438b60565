"""The cluster of docs/high-availability.md, and what becomes of the orders when its leader ends.

`make failover MINUTES=10`, or `python -m tests.failover 10`. `configuration` reads the files out of the
page, `programs` finds what they need, `cluster` runs three machines on addresses of the loopback,
`calamities` ends their leader every minute under load, and `verdict` says what was lost.
"""
