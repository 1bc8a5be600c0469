"""Sentinels: they name the master, and connections lead to no other server."""
