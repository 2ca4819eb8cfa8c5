"""WebSocket connections through the gateway: frames as they are, a call for each turn."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from telemetry.records import BeginRecord, EndRecord
from tests.fakes.served_gateway import ServedGateway, Tenant, wait_until

CREDENTIAL = "sk-upstream-secret"
CREATE = {"type": "response.create", "model": "gpt-4o", "input": "Where is order 4817?"}
COMPLETED = {
    "type": "response.completed",
    "response": {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "output": [
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "It left today.", "annotations": []}],
            }
        ],
        "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12},
    },
}
DONE = {
    "type": "response.done",
    "response": {"id": "resp_rt", "status": "completed", "usage": {"input_tokens": 3}},
}

Script = Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]


@asynccontextmanager
async def provider(script: Script) -> AsyncIterator[str]:
    """A WebSocket provider that follows a script on each connection; the origin to reach it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {CREDENTIAL}":
            return web.json_response({"error": {"message": "who?"}}, status=401)
        socket = web.WebSocketResponse(protocols=("realtime",))
        await socket.prepare(request)
        await script(socket, request)
        return socket

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def turns_of(gateway: ServedGateway, tenant: Tenant) -> list[tuple[BeginRecord, EndRecord]]:
    """The calls that dialects read, in the order in which they began."""
    records = gateway.records()
    ends = {record.call_id: record for record in records if isinstance(record, EndRecord)}
    return [
        (record, ends[record.call_id])
        for record in records
        if isinstance(record, BeginRecord) and record.dialect and record.api_key_id == tenant.key_id
    ]


async def responses(socket: web.WebSocketResponse, request: web.Request) -> None:
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_json({"type": "response.created", "response": {"id": "resp_1"}})
            await socket.send_json(COMPLETED)


@pytest.mark.parametrize("compress", [0, 15])
def test_each_turn_of_responses_over_websocket_is_a_call(gateway: ServedGateway, compress: int) -> None:
    async def talk() -> list[object]:
        async with provider(responses) as origin:
            tenants.append(
                await asyncio.to_thread(gateway.add_tenant, upstream=f"{origin}/v1", credential=CREDENTIAL)
            )
            async with (
                aiohttp.ClientSession(headers={"authorization": f"Bearer {tenants[0].key}"}) as session,
                session.ws_connect(f"{gateway.origin}/v1/responses", compress=compress) as socket,
            ):
                answers = []
                for _ in range(2):
                    await socket.send_json(CREATE)
                    answers += [await socket.receive_json(), await socket.receive_json()]
                return answers

    tenants: list[Tenant] = []
    answers = asyncio.run(talk())
    assert answers == [{"type": "response.created", "response": {"id": "resp_1"}}, COMPLETED] * 2
    turns = turns_of(gateway, tenants[0])
    assert len(turns) == 2
    for begin, end in turns:
        assert (begin.dialect, begin.method, begin.path) == ("responses", "GET", "/v1/responses")
        assert json.loads(begin.request) == CREATE
        assert (begin.model_requested, begin.stream) == ("gpt-4o", True)
        assert (end.outcome, end.response_id) == ("complete", "resp_1")
        assert (end.prompt_tokens, end.completion_tokens) == (7, 5)
        assert end.echo_hash
    assert (
        turns[0][0].run_hint != turns[1][0].run_hint
    )  # equal openings, and neither repeats the other's answer


def test_a_realtime_turn_holds_what_led_to_it(gateway: ServedGateway) -> None:
    async def realtime(socket: web.WebSocketResponse, request: web.Request) -> None:
        seen.append((request.query["model"], socket.ws_protocol))
        async for message in socket:
            if message.type == WSMsgType.BINARY or json.loads(message.data)["type"] != "response.create":
                continue
            await socket.send_json(DONE)
            await socket.send_json(
                {"type": "response.created"}
            )  # the server's own turn, after it heard silence
            await socket.send_json(DONE)
            await socket.close()

    async def talk() -> None:
        async with provider(realtime) as origin:
            tenants.append(
                await asyncio.to_thread(gateway.add_tenant, upstream=f"{origin}/v1", credential=CREDENTIAL)
            )
            # As a browser does it: no headers, the key among the subprotocols.
            protocols = ["realtime", f"openai-insecure-api-key.{tenants[0].key}"]
            url = f"{gateway.origin}/v1/realtime?model=gpt-realtime"
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url, protocols=protocols) as socket,
            ):
                await socket.send_bytes(b"\x00" * 100_000)
                await socket.send_json({"type": "conversation.item.create", "item": {"role": "user"}})
                await socket.send_json({"type": "response.create"})
                heard.extend([(await socket.receive()).type for _ in range(4)])

    seen: list[tuple[str, str | None]] = []
    heard: list[WSMsgType] = []
    tenants: list[Tenant] = []
    asyncio.run(talk())
    assert seen == [("gpt-realtime", "realtime")]
    assert heard == [WSMsgType.TEXT, WSMsgType.TEXT, WSMsgType.TEXT, WSMsgType.CLOSE]
    (asked, answered), (unasked, also_answered) = turns_of(gateway, tenants[0])
    assert [json.loads(line)["type"] for line in asked.request.splitlines()] == [
        "conversation.item.create",
        "response.create",
    ]
    assert (asked.dialect, asked.model_requested) == ("realtime", "gpt-realtime")
    assert (answered.response_id, answered.prompt_tokens) == ("resp_rt", 3)
    assert (unasked.request, also_answered.outcome) == (b"", "complete")
    assert all(tenants[0].key.encode() not in record.request for record in (asked, unasked))


def test_the_begin_record_of_a_turn_is_there_before_the_upstream_hears_of_it(gateway: ServedGateway) -> None:
    async def look(socket: web.WebSocketResponse, request: web.Request) -> None:
        await socket.receive()
        begun = [r for r in gateway.records() if isinstance(r, BeginRecord) and r.dialect == "responses"]
        found.append(any(record.api_key_id == tenants[0].key_id for record in begun))
        transport = request.transport
        assert transport is not None
        transport.abort()  # and then it dies in the middle of the turn

    async def talk() -> None:
        async with provider(look) as origin:
            tenants.append(
                await asyncio.to_thread(gateway.add_tenant, upstream=f"{origin}/v1", credential=CREDENTIAL)
            )
            headers = {"authorization": f"Bearer {tenants[0].key}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.ws_connect(f"{gateway.origin}/v1/responses") as socket,
            ):
                await socket.send_json(CREATE)
                ends.append((await socket.receive()).type)

    tenants: list[Tenant] = []
    found: list[bool] = []
    ends: list[WSMsgType] = []
    asyncio.run(talk())
    assert found == [True]
    assert ends[0] in {WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR}
    wait_until(lambda: bool(turns_of(gateway, tenants[0])))
    ((_, end),) = turns_of(gateway, tenants[0])
    assert end.outcome == "upstream_cut"


def test_a_refusal_to_upgrade_reaches_the_client_as_it_is(gateway: ServedGateway) -> None:
    async def talk() -> int:
        async with provider(responses) as origin:
            tenant = await asyncio.to_thread(
                gateway.add_tenant, upstream=f"{origin}/v1", credential="sk-wrong"
            )
            headers = {"authorization": f"Bearer {tenant.key}"}
            async with aiohttp.ClientSession(headers=headers) as session:
                with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
                    await session.ws_connect(f"{gateway.origin}/v1/responses")
                return raised.value.status

    assert asyncio.run(talk()) == 401
