"""A language model as the judge of two responses, through any endpoint that speaks OpenAI's chat protocol."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from scorers.bounded_client import BoundedClient
from scorers.judgments import Answer, JudgmentCache
from scorers.samples import Sample, prompt_text
from scorers.verdicts import (
    BASELINE,
    CANDIDATE,
    FAILED,
    TIE,
    UNDECIDED,
    JudgedRow,
    check_labels,
    judge_messages,
    parse_verdict,
)

DEFAULT_BASE_URL = "https://api.openai.com/v1"
_NO_KEY = "no-key"  # what the client sends to an endpoint on this machine that needs none
_STOP_AFTER_FAILURES = 8  # requests that fail, with not one answered, before the endpoint is given up


class JudgeStopped(Exception):
    """The judge cannot be asked any further (a wrong key or model, no quota, nobody answers)."""


class RequestFailed(Exception):
    """One request was given up after its retries."""


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is, and the key to it.

    Attributes:
        base_url: such as "https://api.openai.com/v1".
        api_key: None where none is needed.
    """

    base_url: str
    api_key: str | None = field(repr=False)


def find_endpoint(base_url: str | None) -> Endpoint:
    """The endpoint from --base-url or OPENAI_BASE_URL, with the key from OPENAI_API_KEY.

    Raises:
        ValueError: the URL is none, or there is no key for an endpoint that is not on this machine.
    """
    base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--base-url must look like http://localhost:8000/v1, not {base_url!r}")
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError(
            f"the URL of the judge at {parts.hostname} holds a user, a password or a ?query, which would stand in logs "
            "and files: leave them out, and set OPENAI_API_KEY to the key"
        )
    api_key = os.environ.get("OPENAI_API_KEY", "").strip()
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("OPENAI_API_KEY holds characters that no key has; set it again")
    if not api_key and not _is_loopback(parts.hostname):
        raise ValueError(
            f"no key for the judge at {parts.hostname}: set OPENAI_API_KEY; or judge without one by `--offline "
            "direct_answer` (or `shorter`), or by a server on this machine, `--base-url http://localhost:8000/v1`"
        )
    return Endpoint(base_url, api_key or None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True)
class Question:
    """One request: who is shown first, the messages, and the hash that names it in the cache."""

    shown_first: str
    messages: list[dict[str, str]]
    key: str


class Judge:
    """Asks one model which of two responses is better.

    Args:
        model: the endpoint's name of the judge.
        labels: the two characters by which the responses are called.
        seed: passed to the endpoint; the temperature is 0.
        max_tokens: after which an answer is cut off, and undecided; a judge that thinks first needs more room.
        timeout: seconds after which a try that has not been answered in full is given up.
        retries: further tries after time-outs, lost connections, answers without end and statuses 408, 409, 429 and
            5xx, each later than the last and not before the `Retry-After` that the server names.
        sleep_time: seconds between the starts of two requests, retries aside.
    """

    def __init__(
        self,
        model: str,
        endpoint: Endpoint,
        *,
        labels: str = "12",
        seed: int = 0,
        max_tokens: int = 512,
        timeout: float = 60.0,
        retries: int = 6,
        sleep_time: float = 0.0,
    ):
        check_labels(labels)
        try:
            import openai
        except ImportError:
            raise ValueError("the judge needs the package openai (pip install openai); or use --offline") from None
        self._openai = openai
        self._client = BoundedClient(
            openai, api_key=endpoint.api_key or _NO_KEY, base_url=endpoint.base_url, timeout=timeout, retries=retries
        )
        self.model, self.labels, self.sleep_time = model, labels, sleep_time
        self._endpoint = endpoint
        self._parameters = {"temperature": 0, "seed": seed, "max_completion_tokens": max_tokens}
        self._start_lock, self._next_start = threading.Lock(), 0.0

    def question(self, prompt: str, candidate: str, baseline: str, shown_first: str) -> Question:
        """The request that shows the response of `shown_first` first."""
        first, second = (candidate, baseline) if shown_first == CANDIDATE else (baseline, candidate)
        messages = judge_messages(prompt, first, second, self.labels)
        asked = [self.model, self._endpoint.base_url, messages, self._parameters]
        return Question(shown_first, messages, hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest())

    def ask(self, question: Question) -> Answer:
        """Sends the question; blocks until it is answered or given up.

        Raises:
            RequestFailed: no answer after the retries, or one that is not a chat completion.
            JudgeStopped: the endpoint refuses every request alike.
        """
        self._wait_for_turn()
        openai = self._openai
        try:
            completion = self._client.complete(model=self.model, messages=question.messages, **self._parameters)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise JudgeStopped(
                f"the judge refuses every request (HTTP {error.status_code}: {self._reason(error)}); check "
                f"OPENAI_API_KEY, -j {self.model} and --base-url ({urlsplit(self._endpoint.base_url).hostname})"
            ) from None
        except openai.APIStatusError as error:
            if getattr(error, "code", None) == "insufficient_quota":
                raise JudgeStopped(f"the account has no quota left ({self._reason(error)})") from None
            raise RequestFailed(f"HTTP {error.status_code}: {self._reason(error)}") from None
        except openai.APIConnectionError as error:  # its own words are the same whatever went wrong
            raise RequestFailed(f"{type(error).__name__}: {self._reason(error.__cause__ or error)}") from None
        # ValueError: a body that is not JSON, text that is not UTF-8; RecursionError: JSON that is nested too deeply
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise RequestFailed(f"{type(error).__name__}: {self._reason(error)}") from None
        return self._read(completion)

    def close(self) -> None:
        """Closes the connections; afterwards nothing can be asked."""
        self._client.close()

    def _wait_for_turn(self) -> None:
        if not self.sleep_time:
            return
        with self._start_lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + self.sleep_time
        time.sleep(max(0.0, start - time.monotonic()))

    def _read(self, completion: Any) -> Answer:
        try:
            text, finish_reason = completion.choices[0].message.content, completion.choices[0].finish_reason
        except (AttributeError, IndexError, TypeError):
            raise RequestFailed("the endpoint answered with something else than a chat completion") from None
        if not isinstance(text, str | None):
            raise RequestFailed("the endpoint answered with a message that is not text")
        used = getattr(completion, "usage", None)
        counts = {name: getattr(used, name, None) for name in ("prompt_tokens", "completion_tokens")}
        return Answer(self._without_key(text or ""), finish_reason, counts if used else None)

    def _without_key(self, words: object) -> str:
        """An endpoint may repeat the key that it was sent; it goes into no message and no file."""
        return str(words).replace(self._endpoint.api_key, "[key]") if self._endpoint.api_key else str(words)

    def _reason(self, error: BaseException) -> str:
        """Its beginning: a server may send megabytes of explanation."""
        return self._without_key(error)[:500]

    def verdict(self, question: Question, answer: Answer) -> str:
        """Whom the answer prefers: CANDIDATE or BASELINE, else TIE or UNDECIDED."""
        verdict = parse_verdict(answer.text, self.labels, answer.finish_reason)
        if verdict in (TIE, UNDECIDED):
            return verdict
        prefers_first = verdict == self.labels[0]
        return CANDIDATE if prefers_first == (question.shown_first == CANDIDATE) else BASELINE


@dataclass
class JudgedSamples:
    """All rows with their verdicts, and what it took.

    Attributes:
        rows: one for each sample, in their order.
        cache_hits: questions of this run that the cache answered.
        asked: requests that were sent and answered (retries not counted).
        cut_off: answers that ended at the limit of tokens, before their verdict.
        torn_lines: lines of the cache that could not be read.
        failures: how many requests were given up, by reason.
    """

    rows: list[JudgedRow]
    cache_hits: int = 0
    asked: int = 0
    cut_off: int = 0
    torn_lines: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """What a person should know beside the numbers; nothing for an offline rule."""
        notes = []
        if self.cache_hits or self.asked:
            notes.append(f"  {self.asked} requests were answered, {self.cache_hits} were known from the cache.")
        if self.cut_off:
            notes.append(f"  {self.cut_off} answers were cut off before their verdict; raise --max-tokens.")
        if self.torn_lines:
            notes.append(f"  {self.torn_lines} unreadable lines of the cache were passed over.")
        if self.failures:
            notes.append("  Failed requests (the same command asks them again):")
            notes += [f"    {count} x {reason}" for reason, count in self.failures.most_common(5)]
        return notes


def judge_samples(
    samples: list[Sample],
    judge: Judge,
    cache: JudgmentCache,
    candidate_key: str,
    baseline_key: str,
    history_key: str,
    *,
    orders: int = 2,
    seed: int = 0,
    concurrency: int = 8,
) -> JudgedSamples:
    """Asks the judge about every sample, in both orders or in one that a hash of seed and texts picks.

    What the cache knows is not asked, nor is one question twice. Two responses with the same text are a tie, unasked.
    Every answer is in the cache before it counts, so that an interrupted run loses nothing that was paid for.
    """
    plans: list[list[Question]] = []
    for sample in samples:
        texts = prompt_text(sample[history_key]), sample[candidate_key], sample[baseline_key]
        plans.append([judge.question(*texts, shown_first) for shown_first in _orders(texts, orders, seed)])
    questions = {question.key: question for plan in plans for question in plan}
    unknown = [question for key, question in questions.items() if cache.get(key) is None]
    judged = JudgedSamples([], cache_hits=len(questions) - len(unknown), torn_lines=cache.torn_lines)
    failed = _ask_all(unknown, judge, cache, concurrency)
    judged.asked, judged.failures = len(unknown) - len(failed), Counter(failed.values())
    known = [cache.get(key) for key in questions]
    judged.cut_off = sum(answer is not None and answer.finish_reason == "length" for answer in known)
    for sample, plan in zip(samples, plans, strict=True):
        prompt = prompt_text(sample[history_key])
        if not plan:
            judged.rows.append(JudgedRow(prompt, (TIE,) * orders))
            continue
        answers = [cache.get(question.key) for question in plan]
        verdicts = [judge.verdict(q, a) if a else FAILED for q, a in zip(plan, answers, strict=True)]
        words = tuple(answer.text if answer else "" for answer in answers)
        judged.rows.append(JudgedRow(prompt, tuple(verdicts), tuple(q.shown_first for q in plan), words))
    return judged


def _orders(texts: tuple[str, str, str], orders: int, seed: int) -> tuple[str, ...]:
    """Whose response is shown first, once for each request."""
    if texts[1] == texts[2]:
        return ()
    if orders == 2:
        return (CANDIDATE, BASELINE)
    digest = hashlib.sha256(json.dumps([seed, *texts]).encode()).digest()
    return (CANDIDATE,) if digest[0] % 2 else (BASELINE,)


def _ask_all(questions: list[Question], judge: Judge, cache: JudgmentCache, concurrency: int) -> dict[str, str]:
    """Asks and caches; returns the reason of each failure by the question's key."""
    from scorers.progress import progress

    def ask(question: Question) -> None:
        cache.add(question.key, judge.ask(question), judge=judge.model, shown_first=question.shown_first)

    failed: dict[str, str] = {}
    answered = 0
    with progress(total=len(questions), desc=f"asking {judge.model}", unit="request", disable=not questions) as bar:

        def count(question: Question, error: BaseException | None) -> None:
            nonlocal answered
            bar.update()
            if error is None:
                answered += 1
                return
            if not isinstance(error, RequestFailed):
                raise error
            failed[question.key] = str(error)[:200]
            bar.set_postfix(failed=len(failed))
            if not answered and len(failed) >= max(_STOP_AFTER_FAILURES, concurrency):
                raise JudgeStopped(f"the first {len(failed)} requests all failed, the last by {error}") from None

        _in_threads(ask, questions, concurrency, count)
    return failed


def _in_threads(
    work: Callable[[Question], None],
    questions: list[Question],
    threads: int,
    done: Callable[[Question, BaseException | None], None],
) -> None:
    """Calls `work` on every question in threads, and `done` here as each ends.

    When `done` raises, or Ctrl-C is pressed, no further question begins, and those under way are waited for, since
    they are being paid for. A second Ctrl-C does not wait: the threads are daemons, which end with the process.
    """
    waiting, finished = queue.SimpleQueue(), queue.SimpleQueue()
    for question in questions:
        waiting.put(question)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                question = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(question)
                finished.put((question, None))
            except BaseException as error:
                finished.put((question, error))

    workers = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, len(questions)))]
    for worker in workers:
        worker.start()
    try:
        for _ in questions:
            done(*finished.get())
    except BaseException:
        stop.set()
        if any(worker.is_alive() for worker in workers):
            print("\nwaiting for the requests under way (Ctrl-C: not for them either)", file=sys.stderr, flush=True)
        for worker in workers:
            worker.join()
        raise
