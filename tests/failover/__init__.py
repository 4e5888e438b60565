"""The cluster of docs/high-availability.md, and the effect of the loss of its leader on orders.

Run `make failover MINUTES=10` or `python -m tests.failover 10`. `configuration` reads the files of the
page, `programs` finds the programs, `cluster` runs three machines on loopback addresses, `calamities`
ends the leader every minute under load, and `verdict` counts the losses.
"""
