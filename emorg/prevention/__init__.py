"""Which mitigation keeps what is trained and stops what is not: a sweep of variants, read as one table."""
