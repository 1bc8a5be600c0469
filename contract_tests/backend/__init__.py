"""The contract: opening, closing and cancelling."""
