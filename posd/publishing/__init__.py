"""The way of an event into a stream: requests and outbox rows become numbered, stored events.

Delivery to tills does not belong here. It begins when the transaction has been committed.
"""
