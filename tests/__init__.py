"""The tests, laid out as the packages they test. Real servers come from `servers.py`, bad networks from `proxy.py`."""
