// The AI SDK against the server at process.argv[2]: whole and streamed turns, and a tool.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({ name: "ensemblehub", baseURL: process.argv[2], apiKey: "none", includeUsage: true });
const INSIGHT = "Goal: add. Planning: add.";
const messages = [{ role: "user", content: "2 + 2?" }];

const first = await generateText({ model: provider("ensemble"), messages, temperature: 0 });
assert.equal(first.text, "It is 4.");
assert.equal(first.reasoningText, INSIGHT);
assert.equal(first.usage.outputTokens, 7);

messages.push(...first.response.messages, { role: "user", content: "Sure?" });
const options = { ensemblehub: { reasoningEffort: "high", user: "me" } };
const second = streamText({ model: provider("ensemble"), messages, providerOptions: options });
let said = "";
for await (const part of second.textStream) said += part;
assert.equal(said, "Yes, 4.");
assert.equal(await second.reasoningText, INSIGHT);
assert.equal(await second.finishReason, "stop");

messages.push(...(await second.response).messages, { role: "user", content: "Sure?" });
const third = await generateText({ model: provider("ensemble"), messages });
assert.equal(third.text, "Yes, 4.");

const add = tool({
  description: "Add two numbers.",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => a + b,
});
for (const ask of [generateText, streamText]) {
  const used = await ask({ model: provider("caller"), prompt: "2 + 2?", tools: { add }, stopWhen: stepCountIs(3) });
  assert.equal(await used.text, "The tool says 4.");
  const steps = await used.steps;
  assert.deepEqual(steps[0].toolResults.map((one) => one.output), [4]);
  assert.equal(steps[0].usage.outputTokens, 12);
}
await assert.rejects(
  generateText({ model: provider("ensemble"), prompt: "word ".repeat(400), maxRetries: 0 }),
  (error) => error.statusCode === 400 && error.message.startsWith("This model's maximum context length is"),
);
