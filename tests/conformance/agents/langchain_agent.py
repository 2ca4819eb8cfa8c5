"""LangChain: `create_agent` on `ChatOpenAI`."""

import desk
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

report = desk.Report()


@tool
def find_order(number: str) -> str:
    """Look an order up by its number."""
    report.tools.append("find_order")
    return desk.find_order(number)


@tool
def send_replacement(number: str, reason: str) -> str:
    """Send the goods of an order again."""
    report.tools.append("send_replacement")
    return desk.send_replacement(number, reason)


model = ChatOpenAI(model=desk.MODEL, base_url=desk.BASE_URL, api_key=desk.API_KEY, streaming=True)
agent = create_agent(model, tools=[find_order, send_replacement], system_prompt=desk.INSTRUCTIONS)
asked = {"messages": [{"role": "user", "content": desk.QUESTION}]}
for piece, _ in agent.stream(asked, stream_mode="messages"):
    if isinstance(piece, AIMessageChunk):
        report.pieces += 1
        report.answer += str(piece.content)
report.print()
