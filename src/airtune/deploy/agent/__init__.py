"""A device: the agent that waits, and the worker that does tasks."""
