// The official `openai` package for Node: its own tool runner, streamed.

import OpenAI from "openai";
import * as desk from "./desk.mjs";

const client = new OpenAI({ baseURL: desk.baseURL, apiKey: desk.apiKey });
const runner = client.chat.completions.runTools({
  model: desk.model,
  stream: true,
  messages: [
    { role: "system", content: desk.instructions },
    { role: "user", content: desk.question },
  ],
  tools: Object.entries(desk.tools).map(([name, { description, fields }]) => ({
    type: "function",
    function: {
      name,
      description,
      parameters: desk.parameters(fields),
      parse: JSON.parse,
      function: (input) => desk.use(name, input),
    },
  })),
});
runner.on("chunk", () => (desk.report.pieces += 1));
desk.report.answer = await runner.finalContent();
desk.print();
