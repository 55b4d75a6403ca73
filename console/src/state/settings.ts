/** What the playground asks for, beside what is said. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { SamplingParamsSchema, ToolSchema } from "../gen/serverlessllm/v1/types_pb";
import { numberOf, wholeOf } from "../dialogs/fields";

/** As it is written in the fields. */
export interface Written {
  system: string;
  temperature: string;
  topP: string;
  topK: string;
  maxTokens: string;
  seed: string;
  stop: string;
  priority: string;
  tools: string;
}

export const FRESH: Written = {
  system: "",
  temperature: "0.7",
  topP: "",
  topK: "",
  maxTokens: "256",
  seed: "",
  stop: "",
  priority: "",
  tools: "",
};

/** As it is sent. */
export interface Settings {
  /** Whether what is said is a conversation; otherwise it is a text to go on with. */
  chat: boolean;
  system: string;
  sampling: MessageInitShape<typeof SamplingParamsSchema>;
  maxTokens: number | undefined;
  stop: string[];
  priority: number;
  tools: MessageInitShape<typeof ToolSchema>[];
}

/** Reads the fields; throws an Error that says what cannot be read. */
export function read(written: Written, chat: boolean): Settings {
  const seed = wholeOf(written.seed, "Seed");
  return {
    chat,
    system: written.system.trim(),
    sampling: {
      temperature: numberOf(written.temperature, "Temperature"),
      topP: numberOf(written.topP, "Top p"),
      topK: wholeOf(written.topK, "Top k"),
      seed: seed === undefined ? undefined : BigInt(seed),
    },
    maxTokens: wholeOf(written.maxTokens, "Max tokens"),
    stop: written.stop.split("\n").filter((line) => line !== ""),
    priority: wholeOf(written.priority, "Priority") ?? 0,
    tools: toolsOf(written.tools),
  };
}

/** Tools as OpenAI writes them, with or without the envelope around each. */
function toolsOf(text: string): Settings["tools"] {
  if (text.trim() === "") return [];
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new Error(`Tools are not JSON: ${(error as Error).message}`);
  }
  if (!Array.isArray(parsed)) throw new Error("Tools are a JSON array");
  return parsed.map(toolOf);
}

function toolOf(one: unknown): Settings["tools"][number] {
  const found = one as { function?: unknown } | null;
  const { name, description, parameters } = (found?.function ?? found ?? {}) as Record<string, unknown>;
  if (typeof name !== "string") throw new Error("Each tool has a name");
  return {
    name,
    description: typeof description === "string" ? description : "",
    parameters: parameters === undefined ? "" : JSON.stringify(parameters),
  };
}
