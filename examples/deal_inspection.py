"""An agent that inspects an org's deals: it boots with their whole history over MCP and flags those that stall.

    python examples/deal_inspection.py http://127.0.0.1:7070 2026-11-26      # the key in POLDER_KEY

The agent is a loop around a `Model`: something that looks at the conversation so far and says which
tool to call, or what its answer is. `ScriptedModel` stands in for a language model behind the same
interface, so that the example needs none, and says the same every time. Rows are evidence and never
instructions: whatever a note says, only the model's own steps are carried out.
"""

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

from mcp import ClientSession
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

# Answers are read in parts of about this many tokens, as a model's window asks for.
WINDOW_TOKENS = 60_000
STEPS_MAX = 1_000


@dataclass(frozen=True)
class ToolCall:
    """What the model wants to be done."""

    tool: str
    arguments: dict


@dataclass(frozen=True)
class Finding:
    """A deal that stalls, and the rows that show it."""

    deal: object
    name: str
    days_silent: int
    evidence: list[dict]


@dataclass(frozen=True)
class Answer:
    """What the model has come to."""

    findings: list[Finding]
    # What reads exactly the states that the findings are of.
    states: dict[str, str]


@dataclass
class Message:
    """One call and what came of it."""

    call: ToolCall
    result: dict
    is_error: bool = False


class Model(Protocol):
    """A language model, or what stands in for one."""

    def next(self, conversation: list[Message]) -> ToolCall | Answer: ...


@dataclass
class ScriptedModel:
    """Boots, reads every deal, flags the open ones without a sign of life for `days`."""

    today: date
    days: int = 30
    findings: list[Finding] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)

    def next(self, conversation: list[Message]) -> ToolCall | Answer:
        if not conversation:
            arguments = {"entity": "opportunity", "tokens_max": WINDOW_TOKENS}
            return ToolCall("bootstrap", arguments)
        last = conversation[-1]
        if last.is_error:
            raise RuntimeError(f"{last.call.tool}: {last.result.get('message')} ({last.result.get('hint')})")
        for table in last.result.get("tables", []):
            self.states[table["table"]] = table["from"]
        for deal in last.result["rows"]:
            self.look_at(deal)
        token = last.result["mark"]["next"]
        if token:
            return ToolCall("bootstrap", {"resume": token, "tokens_max": WINDOW_TOKENS})
        self.findings.sort(key=lambda finding: (-finding.days_silent, str(finding.deal)))
        return Answer(self.findings, self.states)

    def look_at(self, deal: dict) -> None:
        row, related = deal["row"], deal["related"]
        if row["stage"] in ("won", "lost"):
            return
        signs = [
            (event["happened_at"], {"table": "activity", "row": event}) for event in related.get("activity", [])
        ] + [(mail["sent_at"], {"table": "email", "row": mail}) for mail in related.get("email", [])]
        signs = [(datetime.fromisoformat(at), row) for at, row in signs if at]
        begun = datetime.fromisoformat(row["created_at"])
        last = max([begun, *(at for at, _ in signs)])
        now = datetime.combine(self.today, datetime.min.time(), UTC)
        if now - last < timedelta(days=self.days):
            return
        # The deal as it is, and the last thing that happened in it.
        evidence = [{"table": "opportunity", "row": row}]
        if signs:
            evidence.append(max(signs, key=lambda sign: sign[0])[1])
        self.findings.append(Finding(deal["key"], row["name"], (now - last).days, evidence))


async def inspect(address: str, key: str, model: Model) -> tuple[Answer, list[Message]]:
    """Runs the agent to its answer; gives the conversation as well."""
    async with (
        create_mcp_http_client(headers={"Authorization": f"Bearer {key}"}) as http,
        streamable_http_client(f"{address}/mcp", http_client=http) as streams,
        ClientSession(streams[0], streams[1]) as client,
    ):
        await client.initialize()
        offered = {tool.name for tool in (await client.list_tools()).tools}
        conversation: list[Message] = []
        for _ in range(STEPS_MAX):
            step = model.next(conversation)
            if isinstance(step, Answer):
                return step, conversation
            if step.tool not in offered:
                raise RuntimeError(f"the server offers no tool {step.tool}")
            answer = await client.call_tool(step.tool, step.arguments)
            message = Message(step, answer.structured_content or {}, bool(answer.is_error))
            conversation.append(message)
        raise RuntimeError(f"no answer after {STEPS_MAX} steps")


def main() -> None:
    address, today = sys.argv[1], date.fromisoformat(sys.argv[2])
    model = ScriptedModel(today)
    answer, _ = asyncio.run(inspect(address, os.environ["POLDER_KEY"], model))
    for finding in answer.findings:
        print(f"{finding.name}: silent for {finding.days_silent} days")
        for row in finding.evidence:
            print(f"    {row['table']}: {json.dumps(row['row'], ensure_ascii=False)}")


if __name__ == "__main__":
    main()
