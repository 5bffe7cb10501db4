"""Other packages' plugins: an entry point in the group `radiodiff_diffusers.plugins` is imported at first use.

What it names may be a module, whose import registers channels, engines or data sets, or a function that does so when
called.
"""

from __future__ import annotations

import functools
import logging
from importlib.metadata import entry_points

ENTRY_POINT_GROUP = "radiodiff_diffusers.plugins"
logger = logging.getLogger(__name__)


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Import every installed plugin once, reporting broken ones; gives the names of those that loaded."""
    loaded = []
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            plugin = entry_point.load()
            if callable(plugin):
                plugin()
        except Exception as error:
            logger.warning("plugin %s (%s) could not be loaded: %s", entry_point.name, entry_point.value, error)
        else:
            loaded.append(entry_point.name)
    return tuple(loaded)
