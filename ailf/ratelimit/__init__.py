"""Quotas that processes share: `RateLimiter` and `AsyncRateLimiter`."""

from ailf.ratelimit.options import OnBackendError
from ailf.ratelimit.permit import AsyncPermit, Permit
from ailf.ratelimit.ratelimit import AsyncRateLimiter, RateLimiter

__all__ = ["AsyncPermit", "AsyncRateLimiter", "OnBackendError", "Permit", "RateLimiter"]
