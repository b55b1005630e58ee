"""Whether the model hub can be reached: asked once, so that a machine without internet gets its answer at once."""

from __future__ import annotations

import logging
import os
import socket
from urllib.parse import urlsplit

log = logging.getLogger(__name__)


def go_offline_when_unreachable(seconds: float = 5.0) -> bool:
    """Sets HF_HUB_OFFLINE when no connection to the hub opens; what is cached still loads, the rest fails at once.

    To be called before huggingface_hub is imported, which reads the variable then. Returns whether the hub is offline.
    A proxy is believed without asking.
    """
    if os.environ.get("HF_HUB_OFFLINE"):
        return True
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False
    place = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=seconds).close()
    except OSError as error:
        log.info("the model hub cannot be reached (%s): only what is on this machine is used", error)
        os.environ["HF_HUB_OFFLINE"] = "1"
        return True
    return False
