"""Sentinels: which server is the master, and connections to that one only."""
