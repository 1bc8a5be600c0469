"""The contract: Lock."""
