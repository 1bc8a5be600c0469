"""The executor over any class of redis-py's connections: for users' clients and the nodes of a cluster."""
