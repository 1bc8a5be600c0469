"""Redis clusters: commands and pub/sub over many nodes."""
