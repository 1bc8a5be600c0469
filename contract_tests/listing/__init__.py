"""The contract of listing."""
