"""Flower: what carries messages to real devices, and the engines over it."""
