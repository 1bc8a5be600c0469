"""The contract: RateLimiter."""
