"""Publishing: requests and rows of the outbox become numbered events in the stream of their tenant.

`posd.delivery` sends the events to the tills after the COMMIT.
"""
