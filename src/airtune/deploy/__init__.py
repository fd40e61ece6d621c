"""Real federations: the server, the devices' agents, their keys, and how a run reaches them."""
