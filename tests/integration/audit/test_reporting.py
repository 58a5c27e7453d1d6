"""Reports: who wrote what and why, what the seals say of it, and nothing that a writer could make the page do."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from agentfield import Agent, Memory
from agentfield.audit.nkey import Signer
from agentfield.audit.reporting import Question, Report, collect, page
from agentfield.cli.verdicts import entitle
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope
from agentfield.pattern import Pattern
from agentfield.scope import RESOLUTION
from tests.support import NatsServer
from tests.support.events import write
from tests.support.sealing import seal_all

SIGNER = Signer.generate()
EVERYWHERE: tuple[AnyScope, ...] = tuple((kind, None) for kind in RESOLUTION)


async def seal(fabric: Fabric, every: int = 3) -> None:
    await seal_all(fabric, SIGNER, every=every)


async def report(
    fabric: Fabric,
    pattern: str = "*",
    *,
    scopes: Sequence[AnyScope] = EVERYWHERE,
    writer: str | None = None,
    first: int | None = None,
    last: int | None = None,
    **options: Any,
) -> Report:
    question = Question(Pattern.parse(pattern), scopes, writer, first, last)
    found = await collect(fabric, question, trusted=[SIGNER.public], **options)
    entitle(found, pattern=pattern, scope=None, writer=writer, since=first, until=last)
    return found


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_a_report_tells_what_happened_to_a_key(fabric: Fabric, memory: Memory) -> None:
    await memory.set("order_1", {"state": "new", "total": 5})
    await memory.set("other", 1)
    await memory.set("order_1", {"state": "paid", "total": 5})
    await memory.delete("order_1")
    await seal(fabric)
    found = await report(fabric, "order_1")
    assert [(row.revision, row.operation, row.seal, row.state) for row in found.rows] == [
        (1, "set", 1, "verified"),
        (3, "set", 1, "verified"),
        (4, "delete", 2, "verified"),
    ]
    assert [(line.kind, line.text.strip()) for line in found.rows[1].change] == [
        ("same", "{"),
        ("before", '"state": "new",'),
        ("after", '"state": "paid",'),
        ("same", '"total": 5'),
        ("same", "}"),
    ]
    assert {line.kind for line in found.rows[2].change} == {"before"}
    assert (found.state, found.statement) == ("verified", "Every event here is as it was sealed")
    assert [span.number for span in found.seals] == [1, 2]
    (from_third,) = (await report(fabric, "order_1", first=2, last=3)).rows
    assert from_third.change == found.rows[1].change


async def test_a_report_of_a_writer_holds_what_it_wrote_wherever(
    fabric: Fabric, server: NatsServer, namespace: str
) -> None:
    agent = Agent("triage", nats_url=server.url, namespace=namespace)

    @agent.memory.on_change("ticket")
    async def judge(event: Any) -> None:
        await agent.memory.set("mood", "calm", scope="global")

    async with agent, agent.session("ada"):
        await agent.memory.set("ticket", "text", scope="session")
        async for change in agent.memory.watch("mood", start="current"):
            if getattr(change, "key", "") == "mood":
                break
    await write(fabric, "by.nobody")
    rows = (await report(fabric, writer="ada")).rows
    assert [(row.key, row.scope) for row in rows] == [("ticket", "session:ada"), ("mood", "global")]
    assert rows[0].writer.items() >= {"agent": "triage", "session": "ada"}.items()
    assert (rows[0].cause, rows[1].cause) == (None, rows[0].revision)
    assert [row.key for row in (await report(fabric, writer="triage")).rows] == ["ticket", "mood"]
    assert (await report(fabric, writer="nobody")).rows == []


async def test_what_is_not_sealed_yet_and_what_was_changed_is_said_of_each_event(
    fabric: Fabric, memory: Memory, namespace: str
) -> None:
    for number in range(4):
        await memory.set("key", number)
    nothing = await report(fabric)
    assert {row.state for row in nothing.rows} == {"unsealed"}
    assert nothing.statement == "Nothing here is sealed: it cannot be verified"
    await seal(fabric, every=2)
    await memory.set("key", 4)
    some = await report(fabric)
    assert [row.state for row in some.rows] == ["verified"] * 4 + ["unsealed"]
    assert some.statement.startswith("4 of 5 events are as they were sealed")
    await fabric.connection.request(f"{namespace}.seals.seal", b"forged", timeout=5)
    forged = await report(fabric)
    assert (forged.state, "seal 3 is forged" in forged.statement) == ("tampered", True)


HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></article><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "\u202etxt.exe",
    "a\x1b[31m\x00\x07",
    "javascript:alert(1)",
    '" onmouseover="alert(1)',
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_whatever_was_written_is_shown_and_does_nothing(fabric: Fabric, memory: Memory, text: str) -> None:
    key = re.sub(r"[\x00-\x1f*>]", "-", text)
    await memory.set(key, {text: [text]}, scope="session", scope_id=key[:9])
    await memory.set(key, text, scope="session", scope_id=key)
    html = page(await report(fabric, writer=None))
    shown = Page(html)
    clean = Page(page(await report(fabric, "nothing_at_all")))
    new = {tag for tag, _ in shown.tags} - {tag for tag, _ in clean.tags}
    assert new <= {"article", "header", "a", "time", "pre", "dl", "dt", "dd", "div", "span", "code"}
    assert not {name for _, attributes in shown.tags for name in attributes} & {"src", "onerror", "onmouseover"}
    assert not [value for _, attributes in shown.tags if (value := attributes.get("href")) and value[0] != "#"]
    assert not [character for character in html if not character.isprintable() and character != "\n"]
    assert "default-src 'none'" in html
    assert ("7 * 7" in shown.text) == ("7 * 7" in text)


async def test_an_event_that_cannot_be_read_does_not_hide_the_others(
    fabric: Fabric, memory: Memory, namespace: str
) -> None:
    await memory.set("key", 1)
    await fabric.connection.request(f"{namespace}.memory.global.global.key", b"<not json>", timeout=5)
    await fabric.connection.client._send_command(f"PUB {namespace}.memory.global.global.".encode() + b"\xff 1\r\nx\r\n")
    await write(fabric, "stored.after.it")
    await seal(fabric)
    found = await report(fabric)
    assert [row.operation for row in found.rows] == ["set", "cannot be read", "cannot be read", "set"]
    assert found.rows[2].key.endswith("\\udcff")
    assert (found.rows[1].state, "not" in found.rows[1].fault) == ("verified", True)
    assert "&lt;not json&gt;" in page(found) or "header" in found.rows[1].fault


async def test_what_is_too_much_for_a_page_is_cut_and_said_to_be(fabric: Fabric, memory: Memory) -> None:
    await memory.set("long", list(range(5000)))
    await memory.set("long", {"text": "x" * 10_000, "rows": list(range(200))})
    for number in range(5):
        await memory.set("key", number)
    found = await report(fabric, limit=4)
    assert (len(found.rows), found.more) == (4, True)
    assert all(len(row.change) <= 200 for row in found.rows)
    assert "lines" in found.rows[0].cut
    assert "the first of more" in page(found)
    assert len(page(found)) < 100_000


async def test_a_report_says_what_was_erased(fabric: Fabric, memory: Memory) -> None:
    await memory.set_personal(["session"])
    user = memory.session("user-1")
    await user.set("email", "ada@example.org")
    assert "ada@example.org" in page(await report(fabric, "email"))
    await memory.erase(scope="session", scope_id="user-1")
    await user.set("email", "new")
    found = await report(fabric, "email")
    assert [(row.operation, row.erased, bool(row.change)) for row in found.rows] == [
        ("set", True, False),
        ("cleared", False, False),
        ("set", False, True),
    ]
    html = page(found)
    assert "has been erased" in Page(html).text
    assert Page(html).text.count("no value, neither before nor after") == 1
    assert "agentfield_encrypted" not in html
