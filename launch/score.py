"""mode=score: a corpus to a file of scored documents, in parallel processes, gone on with where it was cut off."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dataloaders.corpus_texts import CorpusText, count_texts, fingerprint, read_corpus
from launch.documents import PART, DocumentsFile, summary_file
from launch.scorers import build_scorer
from scorers.printable import printable
from scorers.progress import Bar, progress
from scorers.scorer import ScoredText, Scorer, unscored

LARGEST_CHUNK = (64, 100_000)
"""Documents, and characters (up to the document that goes over), that are scored and written together. The chunks of a
corpus are the same however many processes there are and wherever it was cut off; so are batches, and all bits."""
AHEAD = 3  # chunks for each process that are read before they are needed

log = logging.getLogger(__name__)
_scorer: Scorer | None = None  # of a worker process


def run(config: DictConfig) -> dict[str, Any]:
    """Scores `corpus` by `scorer` into `documents_path`, prints a summary and returns it.

    What a killed process has written is kept, and the next one ends in the same file to the byte. A file that is
    complete is left alone.

    Raises:
        ValueError: the corpus cannot be read, or the file is there and is another one.
        OSError: a scoring process was ended.
    """
    options = OmegaConf.to_container(config.scorer, resolve=True)
    cache_dir = config.cache_dir if config.cache_scores else None
    scorer = build_scorer(options, cache_dir)
    path = documents_path(config)
    _keep_corpus(Path(config.corpus).expanduser(), path)
    about = {
        "corpus": config.corpus,
        "fingerprint": fingerprint(config.corpus),
        "text_key": config.text_key,
        "scorer": scorer.identity,
        "direction": scorer.direction,
        "notes": list(scorer.notes),
    }
    if _is_done(path, about, config.overwrite):
        log.info("%s is complete: nothing to do", path)
        return _say(json.loads(summary_file(path).read_text(encoding="utf-8")), path)
    path.parent.mkdir(parents=True, exist_ok=True)
    processes = config.scoring_processes or _cores()
    file = DocumentsFile(path, scorer.identity, scorer.direction, anew=config.overwrite)
    try:
        pace = _score(config, scorer, file, processes, (options, cache_dir))
        return _say(file.finish(about | {"processes": processes} | pace), path)
    finally:
        file.close()


def _cores() -> int:
    """Of those that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def documents_path(config: DictConfig) -> Path:
    """`documents_path`, else scores/CORPUS-SCORER.jsonl."""
    if config.documents_path is not None:
        return Path(config.documents_path).expanduser()
    corpus = config.corpus.removeprefix("hub:").rstrip("/").replace(":", "-")
    name = Path(corpus).expanduser().resolve().name or "corpus"
    for suffix in (".gz", ".jsonl", ".json", ".py", ".txt"):
        name = name.removesuffix(suffix)
    scorer = config.scorer.name if config.scorer.name != "none" else "scored"
    return Path("scores") / f"{name}-{scorer}.jsonl"


def _keep_corpus(corpus: Path, path: Path) -> None:
    """Refuses to write over what is to be scored."""
    written = (path, path.with_name(path.name + PART), summary_file(path))
    if corpus.exists() and corpus.resolve() in [one.resolve() for one in written]:
        raise ValueError(
            f"documents_path={path} would be written over the corpus, of which it has the texts alone: choose another."
        )


def _is_done(path: Path, about: dict[str, Any], overwrite: bool) -> bool:
    if not path.exists() or overwrite:
        return False
    summary = {}
    if summary_file(path).is_file():
        try:
            summary = json.loads(summary_file(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            summary = None
        if not isinstance(summary, dict) or (summary and not isinstance(summary.get("flaws"), dict)):
            raise ValueError(f"{summary_file(path)} is damaged: replace it and {path.name} by overwrite=true.")
    for key in ("corpus", "fingerprint", "text_key", "scorer"):
        if summary.get(key) != about[key]:
            raise ValueError(
                f"{path} is there, and not of this {'corpus as it is now' if key == 'fingerprint' else key}: choose "
                "another documents_path, or replace it by overwrite=true."
            )
    if summary.get("file_bytes", path.stat().st_size) != path.stat().st_size:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes and had {summary['file_bytes']} when it was complete: it "
            "was changed or cut since. Replace it by overwrite=true, or choose another documents_path."
        )
    return True


def _score(
    config: DictConfig, scorer: Scorer, file: DocumentsFile, processes: int, recipe: tuple[Any, ...]
) -> dict[str, float]:
    """Scores what the file does not have.

    Returns the seconds and the bytes of UTF-8 that were scored in them; also those until as many chunks were done as
    there are processes, in which these start.
    """
    begun = time.perf_counter()
    pace = {"seconds": 0.0, "bytes_scored_now": 0, "seconds_of_start": 0.0, "bytes_of_start": 0}
    texts = read_corpus(config.corpus, config.text_key)
    bar = progress(total=count_texts(config.corpus), desc=f"scoring by {scorer.name}", unit="document")
    new = itertools.chain.from_iterable(_not_found(file, chunk, bar) for chunk in _chunks(texts))
    with bar:
        pairs = _in_order(new, processes, recipe) if processes > 1 else ((one, score_chunk(one, scorer)) for one in new)
        for done, (chunk, scored) in enumerate(pairs, 1):
            file.add(chunk, scored)
            bar.update(len(chunk))
            pace["bytes_scored_now"] += sum(len(document.text.encode("utf-8", "surrogatepass")) for document in chunk)
            pace["seconds"] = round(time.perf_counter() - begun, 3)
            if done <= processes:
                pace["seconds_of_start"], pace["bytes_of_start"] = pace["seconds"], pace["bytes_scored_now"]
    if bar.n == 0:
        raise ValueError(f"corpus={config.corpus}: there is no text in it.")
    return pace


def _not_found(file: DocumentsFile, chunk: list[CorpusText], bar: Bar) -> Iterator[list[CorpusText]]:
    """The chunk, unless the file has it."""
    if file.found(chunk):
        bar.update(len(chunk))
        bar.initial = bar.n
    else:
        yield chunk


def _chunks(texts: Iterator[CorpusText]) -> Iterator[list[CorpusText]]:
    chunk: list[CorpusText] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text.text)
        if len(chunk) == LARGEST_CHUNK[0] or size >= LARGEST_CHUNK[1]:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def score_chunk(chunk: Sequence[CorpusText], scorer: Scorer) -> list[ScoredText]:
    """The scores of some documents; those that could not be read keep the flaw that they came with."""
    scored = iter(scorer.score_documents([one.text for one in chunk if one.flaw is None]))
    return [next(scored) if one.flaw is None else unscored(one.text, one.flaw) for one in chunk]


# Several processes ---------------------------------------------------------------------------------------------------


def _in_order(
    chunks: Iterator[list[CorpusText]], processes: int, recipe: tuple[Any, ...]
) -> Iterator[tuple[list[CorpusText], list[ScoredText]]]:
    """Chunks with their scores, in order; only a few are read ahead."""
    context = multiprocessing.get_context("spawn")  # a forked process would share locks of torch's threads
    pool = ProcessPoolExecutor(processes, context, _start_worker, recipe)
    waiting: deque[tuple[list[CorpusText], Future[list[ScoredText]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_work, chunk)))
            if len(waiting) >= AHEAD * processes:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
        while waiting:
            chunk, future = waiting.popleft()
            yield chunk, future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a scoring process was ended from outside (by lack of memory?): the same command goes on from there, and "
            "scoring_processes=1 needs the least memory."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(options: dict[str, Any], cache_dir: str | None) -> None:
    global _scorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    logging.getLogger("scorers").setLevel(logging.ERROR)  # it has said what there is to say
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _scorer = build_scorer(options, cache_dir)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: list[CorpusText]) -> list[ScoredText]:
    assert _scorer is not None
    return score_chunk(chunk, _scorer)


# What is printed -----------------------------------------------------------------------------------------------------


def _say(summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """Prints a summary."""
    flawed = ", ".join(f"{count} {reason}" for reason, count in summary["flaws"].items())
    lines = [
        f"{summary['documents']} documents ({summary['characters'] / 1e6:.2f} M characters): {path}",
        f"scored: {summary['scored']}; without a score: {summary['documents'] - summary['scored']}"
        + (f" ({flawed})" if flawed else ""),
        f"segments: {summary['segments']}, {summary['segments_without_score']} of them without a score",
    ]
    if summary["scored"]:
        quantiles = ", ".join(f"{float(q) * 100:.0f} %: {value:.6g}" for q, value in summary["quantiles"].items())
        lines.append(f"score ({summary['direction'].replace('_', ' ')}): mean {summary['mean_score']:.6g}; {quantiles}")
        lines.append(f"documents with score 0: {100 * summary['share_at_0']:.1f} %")
    if summary["seconds"]:
        rate = summary["bytes_scored_now"] / 1e6 / summary["seconds"]
        lines.append(f"{rate:.3f} MB/s with {summary['processes']} processes (starting them included)")
    lines += [f"scorer: {summary['scorer']}", *summary["notes"]]
    print(printable("\n".join(lines)))
    return summary
