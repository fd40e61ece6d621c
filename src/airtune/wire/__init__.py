"""What crosses the network between a server and its devices, and nothing of what it means.

    channel      limits, TLS and names that both ends agree on
    message      a task or an answer as bytes; how it is cut into parts and put together
    post         tasks that wait for their devices, and the answers that came, each by its deadline
    tasks        a device's side of the post
    base, stage  a base model on its way to a device that lacks it
    link         how fast a link is
    traffic_budget  the bytes that a device has left of its month

Imports no torch: a waiting agent is made of this.
"""
