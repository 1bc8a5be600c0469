"""The pytest plugin that every run loads where ailf is installed. It is a package of its own, to import no ailf."""
