"""One module for each group of HTTP operations.

Authentication, limits and errors are the same for all of them and belong in `posd.web.http`."""
