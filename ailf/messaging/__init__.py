"""The import paths of earlier AILF code."""

__all__: list[str] = []
