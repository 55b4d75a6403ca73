/** The playground's conversation: what was said, and how each answer came about. */

import { signal } from "@preact/signals";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { inference, reasonOf, requestId } from "../api";
import type {
  Finished,
  GenerateRequestSchema,
  GenerateResponse,
  Queued,
  Tokens,
} from "../gen/serverlessllm/v1/inference_service_pb";
import type { ChatMessageSchema, Loading } from "../gen/serverlessllm/v1/types_pb";
import { seconds, span } from "../format";
import type { Settings } from "./settings";

export interface Call {
  id: string;
  name: string;
  arguments: string;
  /** What the tool has answered; undefined until somebody has said it. */
  result: string | undefined;
}

export interface Turn {
  id: number;
  role: "user" | "assistant";
  text: string;
  reasoning: string;
  calls: readonly Call[];
  /** While there is no token yet: why. */
  waits: Queued | undefined;
  loading: Loading | undefined;
  moves: readonly string[];
  tokens: number;
  /** Moments of this page's clock, in milliseconds. */
  beganAt: number;
  firstAt: number | undefined;
  endedAt: number | undefined;
  finished: Finished | undefined;
  failed: string;
}

export const turns = signal<readonly Turn[]>([]);
export const busy = signal(false);

let number = 0;
let leave = new AbortController();

function turn(role: Turn["role"], text = ""): Turn {
  number += 1;
  return {
    id: number,
    role,
    text,
    reasoning: "",
    calls: [],
    waits: undefined,
    loading: undefined,
    moves: [],
    tokens: 0,
    beganAt: performance.now(),
    firstAt: undefined,
    endedAt: undefined,
    finished: undefined,
    failed: "",
  };
}

export function forget(): void {
  stop();
  turns.value = [];
}

export function stop(): void {
  leave.abort();
}

/** Says something, and has the model answer. */
export async function say(text: string, deployment: string, settings: Settings): Promise<void> {
  turns.value = [...turns.value, turn("user", text)];
  await answer(deployment, settings);
}

/** Takes down what a tool has answered. */
export function setResult(turnId: number, index: number, result: string): void {
  turns.value = turns.value.map((one) => {
    if (one.id !== turnId) return one;
    const calls = one.calls.map((call, at) => (at === index ? { ...call, result } : call));
    return { ...one, calls };
  });
}

/** Has the model answer what was said last. */
export async function answer(deployment: string, settings: Settings): Promise<void> {
  if (busy.value) return;
  busy.value = true;
  leave = new AbortController();
  const request = requestOf(deployment, settings);
  let now = turn("assistant");
  const earlier = turns.value;
  let shown = 0;
  const show = () => (turns.value = [...earlier, now]);
  show();
  try {
    for await (const event of inference.generate(request, { signal: leave.signal })) {
      now = after(now, event);
      shown ||= requestAnimationFrame(() => {
        shown = 0;
        if (turns.value.at(-1)?.id === now.id) show();
      });
    }
  } catch (error) {
    now = { ...now, failed: reasonOf(error) || (leave.signal.aborted ? "" : "It was cancelled.") };
  }
  cancelAnimationFrame(shown);
  now = { ...now, endedAt: performance.now(), waits: undefined, loading: undefined };
  if (turns.value.at(-1)?.id === now.id) show();
  busy.value = false;
}

function requestOf(
  deployment: string,
  settings: Settings,
): MessageInitShape<typeof GenerateRequestSchema> {
  const said = turns.value;
  const conversation = {
    messages: [...(settings.system ? [{ role: "system", content: settings.system }] : []), ...said.flatMap(messagesOf)],
    tools: settings.tools,
  };
  return {
    deployment,
    requestId: `console-${requestId()}`,
    prompt: settings.chat
      ? { case: "messages", value: conversation }
      : { case: "text", value: said.map((one) => one.text).join("") },
    sampling: settings.sampling,
    maxTokens: settings.maxTokens,
    stop: settings.stop,
    priority: settings.priority,
  };
}

function messagesOf(one: Turn): MessageInitShape<typeof ChatMessageSchema>[] {
  if (one.role === "user") return [{ role: "user", content: one.text }];
  const toolCalls = one.calls.map(({ id, name, arguments: written }) => ({ id, name, arguments: written }));
  const results = one.calls
    .filter((call) => call.result !== undefined)
    .map((call) => ({ role: "tool", content: call.result!, toolCallId: call.id, name: call.name }));
  return [{ role: "assistant", content: one.text, toolCalls }, ...results];
}

/** An answer after one more event of its stream. */
function after(one: Turn, { event }: GenerateResponse): Turn {
  switch (event.case) {
    case "queued":
      return { ...one, waits: event.value };
    case "loading":
      return { ...one, loading: event.value };
    case "started":
      return { ...one, waits: undefined, loading: undefined };
    case "tokens":
      return afterTokens(one, event.value);
    case "migrated": {
      const { fromNodeId, toNodeId, pause } = event.value;
      const move = `went on from ${fromNodeId} to ${toNodeId}, with a pause of ${span(seconds(pause))}`;
      return { ...one, moves: [...one.moves, move] };
    }
    case "finished":
      return { ...one, finished: event.value };
    default:
      return one;
  }
}

function afterTokens(one: Turn, tokens: Tokens): Turn {
  const calls = [...one.calls];
  for (const delta of tokens.toolCalls) {
    const call = calls[delta.index] ?? { id: "", name: "", arguments: "", result: undefined };
    calls[delta.index] = {
      ...call,
      id: delta.id || call.id,
      name: delta.name || call.name,
      arguments: call.arguments + delta.arguments,
    };
  }
  return {
    ...one,
    calls,
    text: one.text + tokens.text,
    reasoning: one.reasoning + tokens.reasoning,
    tokens: one.tokens + tokens.tokenIds.length,
    firstAt: one.firstAt ?? performance.now(),
    waits: undefined,
    loading: undefined,
  };
}
