"""Engines whose devices are elsewhere: what is asked of them, and what is made of their answers."""
