"""Names of models and adapters that are no folders here: could they be on the Hugging Face Hub?"""

from __future__ import annotations

import re
from pathlib import Path

_OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def could_be_on_the_hub(name: str | Path) -> bool:
    """owner/name, and no path on this machine with a letter wrong: then its parent folder would be there."""
    return bool(_OWNER_AND_NAME.fullmatch(str(name))) and not Path(name).parent.exists()
