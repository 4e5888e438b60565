"""What posd counts, logs and reports about itself.

Components report to `posd.monitoring.counters`. Nothing here changes what they do.
"""
