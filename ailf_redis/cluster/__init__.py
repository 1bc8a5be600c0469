"""A cluster: commands and pub/sub over many nodes."""
