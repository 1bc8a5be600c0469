"""The executor over connections of redis-py's own classes, for clients of users and the nodes of a cluster."""
