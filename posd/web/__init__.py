"""The REST face: one resource tree on the port that the tills connect to as well."""
