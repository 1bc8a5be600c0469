"""The project's URLs for the package index: those of the repository whose workflow builds the release.

A build outside of a workflow has none, so no package names a repository that it doesn't come from.
"""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class RepositoryUrls(MetadataHookInterface):
    """Sets ``urls`` from the variables that GitHub Actions sets."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the URLs to the metadata of the project."""
        server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
        metadata["urls"] = {}
        if server and name:
            home = f"{server}/{name}"
            metadata["urls"] = {
                "Homepage": home,
                "Documentation": f"{home}/blob/main/docs/index.md",
                "Changelog": f"{home}/blob/main/CHANGELOG.md",
                "Issues": f"{home}/issues",
                "Source": home,
            }
