"""The process: start, wiring, reload, systemd and stop.

No rule of delivery or publishing belongs here, only which object gets which other one, and when."""
