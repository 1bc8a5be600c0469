"""How commands reach a server: connections, and the executors that share them, on threads and on asyncio."""
