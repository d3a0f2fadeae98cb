"""Puts the evidence in `results/` into the site, where it stands.

Its pages and pictures then need no copy below `docs/`.
"""

import os
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config):
    """Adds the pages, tables and pictures of `results/`."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / "results").rglob("*")):
        if path.suffix in (".md", ".csv", ".png"):
            files.append(
                File(
                    os.fspath(path.relative_to(root)),
                    os.fspath(root),
                    config.site_dir,
                    config.use_directory_urls,
                )
            )
    return files
