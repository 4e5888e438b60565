"""Rules about events and their members, without I/O: forms, transitions, money, telephone numbers.

Nothing here reads a clock, a socket or the database."""
