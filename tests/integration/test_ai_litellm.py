"""``app.ai`` through the real LiteLLM, against a real HTTP server that speaks the OpenAI protocol."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import BaseModel

from agentfield import AccessDeniedError, Agent, AIConfig, InvalidInputError, RemoteError, UnavailableError
from tests.support import NatsServer

KEY = "sk-secret-of-the-test"


class Sentiment(BaseModel):
    mood: str
    urgency: int


class Provider:
    """An OpenAI-compatible server that answers from a list and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                provider.requests.append(json.loads(body))
                provider.keys.append(self.headers["Authorization"])
                status, answer = provider.answers.pop(0) if len(provider.answers) > 1 else provider.answers[0]
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def will_say(self, *texts: str | None) -> None:
        self.answers = [
            (
                200,
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "test",
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                    ],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                },
            )
            for text in texts
        ]

    def will_fail(self, status: int, message: str) -> None:
        self.answers = [(status, {"error": {"message": message, "type": "error", "code": None, "param": None}})]


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture
def app(provider: Provider) -> Agent:
    config = AIConfig(
        "openai/test-model", api_base=provider.url, api_key=KEY, temperature=0.25, extra={"max_retries": 0, "seed": 7}
    )
    return Agent("app", ai=config)


async def test_text_comes_back_and_the_configuration_is_used(app: Agent, provider: Provider) -> None:
    provider.will_say("Good day.")
    assert await app.ai("Say hello", system="Be polite.") == "Good day."
    (request,) = provider.requests
    assert request["model"] == "test-model"
    assert request["messages"] == [
        {"role": "system", "content": "Be polite."},
        {"role": "user", "content": "Say hello"},
    ]
    assert (request["temperature"], request["seed"]) == (0.25, 7)
    assert provider.keys == [f"Bearer {KEY}"]


async def test_a_schema_is_explained_to_the_model_and_the_answer_validated(app: Agent, provider: Provider) -> None:
    provider.will_say('```json\n{"mood": "angry", "urgency": 3}\n```')
    assert await app.ai("How is this?", schema=Sentiment) == Sentiment(mood="angry", urgency=3)
    said = json.dumps(provider.requests[0])
    assert "urgency" in said
    assert "JSON Schema" in said


async def test_a_model_known_to_take_schemas_is_given_one(provider: Provider) -> None:
    provider.will_say('{"mood": "angry", "urgency": 3}')
    app = Agent("app", ai=AIConfig("openai/gpt-4o-mini", api_base=provider.url, api_key=KEY))
    assert await app.ai("How is this?", schema=Sentiment) == Sentiment(mood="angry", urgency=3)
    assert provider.requests[0]["response_format"]["type"] == "json_schema"


async def test_an_invalid_answer_is_asked_for_again_with_its_error(app: Agent, provider: Provider) -> None:
    provider.will_say("I would say angry.", '{"mood": "angry", "urgency": 3}')
    assert await app.ai("How is this?", schema=Sentiment) == Sentiment(mood="angry", urgency=3)
    first, second = provider.requests
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert [message["role"] for message in second["messages"][-2:]] == ["assistant", "user"]


async def test_two_invalid_answers_are_an_error(app: Agent, provider: Provider) -> None:
    provider.will_say("angry")
    with pytest.raises(RemoteError, match="not a valid Sentiment, twice") as caught:
        await app.ai("How is this?", schema=Sentiment)
    assert (caught.value.agent, caught.value.type_name) == ("openai/test-model", "InvalidAnswer")
    assert len(provider.requests) == 2


async def test_an_empty_answer_is_an_error(app: Agent, provider: Provider) -> None:
    provider.will_say(None)
    with pytest.raises(RemoteError, match="no text"):
        await app.ai("Say hello")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidInputError),
        (401, AccessDeniedError),
        (403, AccessDeniedError),
        (404, InvalidInputError),
        (422, InvalidInputError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_what_the_provider_refuses_is_an_error_of_ours(
    app: Agent, provider: Provider, status: int, error: type[Exception]
) -> None:
    provider.will_fail(status, f"because of {KEY}")
    with pytest.raises(error) as caught:
        await app.ai("Say hello")
    text = str(caught.value)
    assert "openai/test-model" in text
    assert "because of" in text
    assert KEY not in text
    assert "Traceback" not in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_a_provider_that_is_not_there_is_unavailable(provider: Provider) -> None:
    provider.close()
    config = AIConfig("openai/test-model", api_base=provider.url, api_key=KEY, timeout=5, extra={"max_retries": 0})
    with pytest.raises(UnavailableError, match="openai/test-model"):
        await Agent("app", ai=config).ai("Say hello")


async def test_a_name_that_litellm_does_not_know_is_refused_clearly() -> None:
    with pytest.raises(InvalidInputError, match="no-such-provider/model"):
        await Agent("app", ai="no-such-provider/model").ai("Say hello")


async def test_a_reasoner_can_use_it(server: NatsServer, namespace: str, provider: Provider) -> None:
    provider.will_say('{"mood": "happy", "urgency": 1}')
    config = AIConfig("openai/test-model", api_base=provider.url, api_key=KEY)
    app = Agent("app", nats_url=server.url, namespace=namespace, ai=config)

    @app.reasoner()
    async def analyze(message: str) -> Sentiment:
        return await app.ai(system="You are an expert.", user=message, schema=Sentiment)

    async with app:
        assert await app.call("app.analyze", message="Thanks!") == {"mood": "happy", "urgency": 1}
