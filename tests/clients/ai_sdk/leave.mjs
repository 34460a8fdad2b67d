// The AI SDK against the server at process.argv[2]: a stream that is aborted. The process stays until its input ends.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const provider = createOpenAICompatible({ name: "ensemblehub", baseURL: process.argv[2], apiKey: "none" });
const controller = new AbortController();
const { textStream } = streamText({ model: provider("slow"), prompt: "2 + 2?", abortSignal: controller.signal });
for await (const part of textStream) if (part) controller.abort();
console.log("left");
process.stdin.resume();
