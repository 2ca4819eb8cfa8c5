// The order desk of the JavaScript agents; `desk.py` says what it is.

export const baseURL = process.env.BASE_URL;
export const apiKey = process.env.API_KEY;
export const model = "gpt-4o";
export const instructions = "You are an order desk. Find the order first, then help.";
export const question = "My lamp from order 4817 arrived broken.";

export const tools = {
  find_order: {
    description: "Look an order up by its number.",
    fields: ["number"],
    run: ({ number }) => JSON.stringify({ number, status: "delivered" }),
  },
  send_replacement: {
    description: "Send the goods of an order again.",
    fields: ["number", "reason"],
    run: ({ number, reason }) => JSON.stringify({ number, ticket: "R-17", reason }),
  },
};

export function parameters(fields) {
  return {
    type: "object",
    properties: Object.fromEntries(fields.map((field) => [field, { type: "string" }])),
    required: fields,
    additionalProperties: false,
  };
}

export const report = { answer: "", pieces: 0, tools: [] };

export function use(name, input) {
  report.tools.push(name);
  return tools[name].run(input);
}

export function print() {
  console.log(JSON.stringify(report));
}
