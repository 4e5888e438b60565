"""The one way in: requests and outbox rows become numbered, stored events."""
