"""Rules about events and their fields: normal forms, status transitions, money, telephone numbers.

Nothing here does I/O: it reads no clock, socket or database.
"""
