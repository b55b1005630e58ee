"""Runs the peer's script on weights rounded to bfloat16, as ours are: `python peer.py SCRIPT ARGUMENTS OF THE SCRIPT`.

The script has a function `fresh_model` that loads the model. Everything else is the script's own.
"""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Loads the script as a module, wraps its `fresh_model`, and calls its `main`."""
    path = sys.argv[1]
    spec = importlib.util.spec_from_file_location("peer_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    load = script.fresh_model

    def rounded() -> object:
        model = load()
        for weight in model.parameters():
            weight.data = weight.data.bfloat16().float()
        return model

    script.fresh_model = rounded
    sys.argv = [path, *sys.argv[2:]]
    script.main()


if __name__ == "__main__":
    main()
