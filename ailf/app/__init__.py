"""The app: what a worker process handles, declared by decorators, and how one process runs it."""

from ailf.app.app import App

__all__ = ["App"]
