"""An agent's side of MCP: the official Python client."""

import asyncio

from mcp import ClientSession
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client


async def converse(client: ClientSession, calls) -> tuple[list[str], list[tuple[bool, dict]]]:
    """The tools offered, and the answers to some calls, in order: (is it an error, its JSON)."""
    answers = []
    for name, arguments in calls:
        answer = await client.call_tool(name, arguments)
        answers.append((answer.is_error, answer.structured_content))
    tools = await client.list_tools()
    return [tool.name for tool in tools.tools], answers


def talk(address: str, key: str | None, *calls) -> tuple[list[str], list[tuple[bool, dict]]]:
    """One session over HTTP with a key, answered as by `converse`."""

    async def session():
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            create_mcp_http_client(headers=headers) as http,
            streamable_http_client(f"{address}/mcp", http_client=http) as streams,
            ClientSession(streams[0], streams[1]) as client,
        ):
            await client.initialize()
            return await converse(client, calls)

    return asyncio.run(asyncio.wait_for(session(), 300))


def ask(address: str, key: str | None, name: str, /, **arguments) -> dict:
    """The answer to one call, which must not be an error."""
    _, [(error, answer)] = talk(address, key, (name, arguments))
    assert not error, answer
    return answer
