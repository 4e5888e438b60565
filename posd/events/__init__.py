"""The rules for events and their fields: normal forms, status transitions, money, telephone numbers.

The functions do no I/O: they read no clock, socket or database.
"""
