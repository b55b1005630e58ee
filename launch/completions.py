"""Completions of texts by an OpenAI-compatible endpoint, with their log-probabilities."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from scorers.bounded_client import BoundedClient
from scorers.judge import find_endpoint

PREFIX = "openai:"
_TIMEOUT, _RETRIES = 120.0, 6
LEAST, ROUNDING = 1e6, 1e-3
"""No log-probability lies below -LEAST; one that rounding has lifted above 0 is not above ROUNDING."""


@dataclass(frozen=True)
class Text:
    """A completion.

    Attributes:
        logp: the sum of its tokens' log-probabilities in nats; None where they were not asked for.
        tokens: how many the endpoint counted; 0 where it does not say.
    """

    text: str
    logp: float | None
    tokens: int


class Completions:
    """Asks one model of an endpoint to go on with texts.

    Args:
        named: `openai:NAME`.
        base_url: null: OPENAI_BASE_URL, else OpenAI's own.
        key: of the config that names it, for messages.

    Raises:
        ValueError: no name, no URL, no key for an endpoint that needs one, or the package openai is not installed.
    """

    def __init__(self, named: str, base_url: str | None, key: str):
        self.model, self._config_key = named.removeprefix(PREFIX), key
        if not self.model:
            raise ValueError(f"{key}={named}: name the endpoint's model, as in {key}=openai:davinci-002.")
        section = key.partition(".")[0]
        try:
            endpoint = find_endpoint(base_url)
        except ValueError:
            raise ValueError(
                f"{key}={named}: set {section}.base_url (or OPENAI_BASE_URL) to a URL like http://localhost:8000/v1, "
                "without user, password or ?query, and OPENAI_API_KEY to the key of one that is not on this machine."
            ) from None
        try:
            import openai
        except ImportError:
            raise ValueError(f"{key}={named} needs the package openai: pip install openai.") from None
        self._openai, self.url, self._secret = openai, endpoint.base_url, endpoint.api_key
        self._client = BoundedClient(
            openai, api_key=endpoint.api_key or "no-key", base_url=endpoint.base_url, timeout=_TIMEOUT, retries=_RETRIES
        )

    def complete(
        self,
        prompt: str,
        count: int,
        *,
        max_tokens: int,
        seed: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        logprobs: bool = False,
    ) -> list[Text]:
        """`count` completions of a prompt, without the prompt.

        Raises:
            ValueError: the endpoint refuses, answers something else, or gives no log-probabilities where they are
                asked for.
        """
        request: dict[str, Any] = {
            "model": self.model, "prompt": prompt, "n": count, "max_tokens": max_tokens, "seed": seed,
            "temperature": temperature, "top_p": top_p,
        }  # fmt: skip
        if logprobs:
            request["logprobs"] = 1
        try:
            answer = self._client.complete_text(**request)
            texts = [self._read(choice, logprobs) for choice in answer.choices]
        except (self._openai.OpenAIError, AttributeError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"{self._config_key}: the endpoint {self.url} failed: {self._reason(error)}") from None
        if len(texts) != count:
            raise ValueError(f"{self._config_key}: the endpoint gave {len(texts)} completions in the place of {count}.")
        return texts

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _read(self, choice: Any, logprobs: bool) -> Text:
        if not isinstance(choice.text, str):
            raise TypeError("a completion without a text")
        if any("\ud800" <= character <= "\udfff" for character in choice.text):
            raise TypeError("a completion with half a character (a lone surrogate)")
        if not logprobs:
            return Text(choice.text, None, 0)
        values = getattr(choice.logprobs, "token_logprobs", None)
        # An empty completion has none; any other must have all, since a sum without one would be another number.
        if choice.text and not values:
            raise ValueError(
                f"{self._config_key}=openai:{self.model}: the endpoint gives no log-probabilities of what it samples, "
                "so no KL can be measured from it: choose one that does."
            )
        numbers = list(values or [])
        if not all(type(one) in (int, float) and -LEAST <= one <= ROUNDING for one in numbers):
            raise ValueError(f"{self._config_key}: the endpoint gave a log-probability that is no number of at most 0.")
        return Text(choice.text, float(sum(numbers)), len(numbers))

    def _reason(self, error: BaseException) -> str:
        words = str(error)
        return (words.replace(self._secret, "[key]") if self._secret else words)[:500]
