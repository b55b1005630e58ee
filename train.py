"""Trains a model: `python train.py loss=dpo model=tiny datasets=[hh] lr=1e-5`. `--help` says more.

The command is composed and checked first, without torch; then Hydra runs its job, or its jobs (`-m`).
"""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from launch.compose import check_command, compose_job
from launch.errors import one_line_errors
from launch.hub import go_offline_when_unreachable
from launch.multirun import conclude, let_jobs_import, run_job
from trainers.signals import stopping_at_once


@hydra.main(version_base=None, config_path="config", config_name="config")
def main(_: DictConfig) -> None:
    """Runs one job. What Hydra passes is composed anew, because only the checked config has each key's type."""
    with one_line_errors("train.py"):
        config = compose_job("train.py")
        go_offline_when_unreachable(config)
        from launch.train import run

        if HydraConfig.get().mode == RunMode.MULTIRUN:
            run_job(config, run)
        else:
            run(config)


if __name__ == "__main__":
    with stopping_at_once():
        with one_line_errors("train.py"):
            sys.argv[1:] = check_command(sys.argv[1:], "train.py")
        let_jobs_import()
        main()
        sys.exit(conclude())
