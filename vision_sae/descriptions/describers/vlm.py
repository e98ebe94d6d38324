"""Labels by a vision-language model behind any server with OpenAI's chat-completions API.

The describer is off unless a URL and a model are configured. One request for each unit shows the
unit's exemplars, outlined, and asks for a label. The API key is read from the environment variable
``VISION_SAE_VLM_API_KEY`` and is sent in the header of the request only.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlsplit

from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.regions import outlined, region, thumbnail
from vision_sae.errors import (
    InvalidInputError,
    MissingDependencyError,
    RemoteServerAwayError,
    RemoteServerError,
)
from vision_sae.evidence.protocol import Evidence, Firing, split
from vision_sae.hosts import is_loopback
from vision_sae.sections import Section

API_KEY_VARIABLE = "VISION_SAE_VLM_API_KEY"
_PROMPT = (
    "One neuron of a vision network fires at the regions outlined in red in these pictures, and "
    "not elsewhere. Say what the outlined regions have in common as a short noun phrase of at "
    "most eight words, nothing else. If they have nothing in common, answer: none"
)
_SIDE = 224
"""Longer side in pixels of the crops that are sent."""
_LONGEST = 100
"""The most characters of an answer that can be a label."""
_MOST_TOKENS = 64
_AWAY = (401, 403, 404, 408, 429)
"""HTTP statuses that do not depend on the unit: the key or the model's name is wrong, or the server
is too slow or too busy."""


class VlmConfig(Section):
    """Labels by a vision-language model behind an OpenAI-compatible server; off without a URL."""

    url: str | None = None
    """Base of the API, for example http://127.0.0.1:8000/v1; https unless it is this machine."""
    model: str | None = None
    """The name of the model on the server."""
    exemplars: int = Field(8, ge=1, le=48)
    """The most exemplars in the request for a unit."""
    timeout_seconds: float = Field(60.0, gt=0)
    """The time limit of one try."""
    retries: int = Field(3, ge=0, le=20)
    """Further tries when the server fails, is busy or cannot be reached."""


class _Message(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """The fields of a server's answer that the describer reads."""

    choices: Annotated[list[_Choice], Field(min_length=1)]


class VlmDescriber:
    """Labels by a vision-language model behind a server, one request for each unit."""

    name = "vlm"
    version = 2

    def __init__(self, config: VlmConfig) -> None:
        """Raises `InvalidInputError` without a URL and a model, and for a URL that is not safe."""
        if not config.url or not config.model:
            missing = "url" if not config.url else "model"
            raise InvalidInputError(
                f"describe.vlm.{missing} is not set; the describer vlm needs the URL of a server "
                "and the name of its model",
                field=f"describe.vlm.{missing}",
            )
        _refuse_unsafe(config.url)
        self._config = config

    @cached_property
    def _client(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError(
                "the describer vlm needs: pip install 'vision-sae[vlm]'", field="describer"
            ) from error
        # The library would send the values of variables that are meant for OpenAI's own server.
        unsent: Any = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        return openai.OpenAI(
            base_url=self._config.url,
            api_key=os.environ.get(API_KEY_VARIABLE) or "none",
            default_headers=unsent,
            timeout=self._config.timeout_seconds,
            max_retries=self._config.retries,
            # A redirection or a proxy must not carry clear text to another machine.
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False, trust_env=str(self._config.url).startswith("https:")
            ),
        )

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order, one request for each.

        Raises `RemoteServerError` when the server answers with an error, and
        `RemoteServerAwayError` when the server does not answer, is too busy, or refuses the key.
        """
        for unit in units:
            yield self._describe(evidence, unit)

    def _describe(self, evidence: Evidence, unit: int) -> Description:
        exemplars = split(evidence, unit).describe[: self._config.exemplars]
        patches = tuple(firing.patch for firing in exemplars)
        if not exemplars:
            reason = "it fires in no picture to describe it by"
            return Description(unit, None, reason, self.name, self.version)
        answer = self._ask([_crop(evidence, firing) for firing in exemplars])
        text, abstained = _label(answer)
        return Description(
            unit,
            text,
            abstained,
            self.name,
            self.version,
            evidence=patches,
            details={"model": self._config.model, "answer": _printable(answer)[: 2 * _LONGEST]},
        )

    def _ask(self, crops: Sequence[Image.Image]) -> str:
        """The server's answer about these crops, without white space at its ends."""
        import openai

        client, keyless = self._client, not os.environ.get(API_KEY_VARIABLE)
        content: list[dict[str, Any]] = [{"type": "text", "text": _PROMPT}]
        content += [{"type": "image_url", "image_url": {"url": _data_url(c)}} for c in crops]
        try:
            completion = client.chat.completions.create(
                model=self._config.model,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=_MOST_TOKENS,
                extra_headers={"Authorization": openai.Omit()} if keyless else None,
            )
            answer = _Completion.model_validate(completion, from_attributes=True)
        except openai.APIStatusError as error:
            what = f"answered with HTTP status {error.status_code}"
            away = error.status_code in _AWAY or error.status_code >= 500
            raise (_away if away else _failure)(what) from error
        except openai.APIConnectionError as error:
            raise _away(f"could not be reached ({error})") from error
        except (openai.APIError, ValidationError, ValueError) as error:
            raise _failure("gave an answer that is no chat completion") from error
        return (answer.choices[0].message.content or "").strip()


def _away(what: str) -> RemoteServerAwayError:
    return RemoteServerAwayError(
        f"the server at describe.vlm.url {what}; units without a label wait for the server",
        field="describe.vlm.url",
    )


def _failure(what: str) -> RemoteServerError:
    return RemoteServerError(f"the server at describe.vlm.url {what}", field="describe.vlm.url")


def _refuse_unsafe(url: str) -> None:
    """Refuse a URL that would send pictures and the key to another machine in clear text."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if not host or parts.scheme not in ("http", "https") or parts.username is not None:
        raise InvalidInputError(
            "describe.vlm.url must be an http or https URL with a host and without a user name",
            field="describe.vlm.url",
        )
    if parts.scheme == "http" and not is_loopback(host):
        raise InvalidInputError(
            f"describe.vlm.url: {host} is another machine; use https", field="describe.vlm.url"
        )


def _crop(evidence: Evidence, firing: Firing) -> Image.Image:
    picture = thumbnail(evidence, firing.image)
    return outlined(picture, region(evidence, firing, picture.size), _SIDE)


def _data_url(picture: Image.Image) -> str:
    png = io.BytesIO()
    picture.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii")


def _printable(text: str) -> str:
    """The text with a mark in place of each control character: label stores refuse these."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _label(answer: str) -> tuple[str | None, str]:
    """(label, "") or (None, the reason of the abstention)"""
    text = answer.strip(" \t\r\n\"'`.*")
    if not text:
        return None, "the model's answer is empty"
    if text.lower() == "none":
        return None, "the model sees nothing in common"
    if len(text) > _LONGEST or not text.isprintable():
        return None, f"the model's answer is no label: {len(text)} characters"
    return text, ""


VLM = register_describer(
    DescriberKind(
        VlmDescriber,
        VlmConfig,
        lambda tools, evidence, settings: VlmDescriber(settings),
        needs=("server",),
        served=lambda settings: bool(settings.url),
    )
)
