"""Helpers that the tests of the suite share."""
