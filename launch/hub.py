"""Whether the model hub can be reached: asked once, so that a machine without internet gets its answer at once."""

from __future__ import annotations

import logging
import os
import socket
from urllib.parse import urlsplit

from omegaconf import DictConfig

from dataloaders.corpus_texts import HUB
from models.loading import locate

log = logging.getLogger(__name__)


def needs_hub(config: DictConfig) -> bool:
    """Whether a run's model or one of its data sets is named by a hub id, or a corpus or a classifier of mode=score."""
    if config.mode == "score":
        return config.corpus.startswith(HUB) or (config.scorer.name == "toxicity" and config.scorer.base is None)
    names = [config.model.name_or_path, config.model.load_from]
    on_hub = [name for name in names if name is not None and locate(name, config.cache_dir).kind == "hub"]
    return bool(on_hub) or any(options.get("hub") and not options.get("path") for options in config.datasets.values())


def go_offline_when_unreachable(config: DictConfig, seconds: float = 5.0) -> bool:
    """Sets HF_HUB_OFFLINE when a run needs the hub and no connection to it opens.

    What is cached still loads then, and the rest fails at once instead of after many retries.

    To be called before huggingface_hub is imported, which reads the variable then. Returns whether the hub is offline.
    A proxy is believed without asking.
    """
    if os.environ.get("HF_HUB_OFFLINE"):
        return True
    if not needs_hub(config):
        return False
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
