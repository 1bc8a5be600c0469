"""Connections to a server, and the executors that send commands over them, on threads and on asyncio."""
