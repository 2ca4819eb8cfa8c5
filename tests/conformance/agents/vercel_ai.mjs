// The Vercel AI SDK, streamed, with the provider that PROVIDER names: `openai` (responses), `openai-chat`, or
// `openai-compatible`.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { jsonSchema, stepCountIs, streamText, tool } from "ai";
import * as desk from "./desk.mjs";

const at = { baseURL: desk.baseURL, apiKey: desk.apiKey };
const model = {
  openai: () => createOpenAI(at).responses(desk.model),
  "openai-chat": () => createOpenAI(at).chat(desk.model),
  "openai-compatible": () => createOpenAICompatible({ ...at, name: "provider" }).chatModel(desk.model),
}[process.env.PROVIDER]();

const { fullStream } = streamText({
  model,
  instructions: desk.instructions,
  prompt: desk.question,
  stopWhen: stepCountIs(5),
  tools: Object.fromEntries(
    Object.entries(desk.tools).map(([name, { description, fields }]) => [
      name,
      tool({
        description,
        inputSchema: jsonSchema(desk.parameters(fields)),
        execute: async (input) => desk.use(name, input),
      }),
    ]),
  ),
});
for await (const part of fullStream) {
  if (part.type === "error") throw part.error;
  if (part.type === "text-delta") desk.report.answer += part.text;
  if (part.type === "text-delta" || part.type === "tool-input-delta") desk.report.pieces += 1;
}
desk.print();
