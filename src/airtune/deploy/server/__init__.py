"""The server: what faces the network, whom it knows, and the runs it starts."""
