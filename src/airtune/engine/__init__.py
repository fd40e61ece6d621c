"""The engines: they execute a round's plan, and only they know time."""
