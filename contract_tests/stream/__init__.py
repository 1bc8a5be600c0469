"""The contract: Stream, its groups and workers."""
