"""A run over real devices: its process at the server, and what it knows of them."""
