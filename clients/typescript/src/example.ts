// Deploys a model, streams from it, and does what a caller does when things go otherwise:
// npm start HOST:PORT SOURCE
import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { Http2SessionManager, createGrpcTransport } from "@connectrpc/connect-node";

import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { DeploymentService, DeploymentState } from "./gen/serverlessllm/v1/deployment_service_pb.js";
import {
  ContinuationSchema,
  GenerateRequestSchema,
  InferenceService,
  type GenerateRequest,
} from "./gen/serverlessllm/v1/inference_service_pb.js";

const NAME = "from-typescript";

const [address, source] = process.argv.slice(2);
const baseUrl = `http://${address}`;
const sessionManager = new Http2SessionManager(baseUrl);
const transport = createGrpcTransport({ baseUrl, sessionManager });
const deployments = createClient(DeploymentService, transport);
const inference = createClient(InferenceService, transport);

// A loop over a stream that ends early leaves its call open, until this ends it.
function leaving(): { signal: AbortSignal; leave: () => void } {
  const controller = new AbortController();
  return { signal: controller.signal, leave: () => controller.abort() };
}

// Greedy, so that all generations of a prompt are the same.
function request(maxTokens: number, changes: Partial<GenerateRequest> = {}): GenerateRequest {
  const base = create(GenerateRequestSchema, {
    deployment: NAME,
    prompt: { case: "text", value: "The for statement" },
    sampling: { temperature: 0 },
    maxTokens,
    ignoreEos: true,
  });
  return Object.assign(base, changes);
}

async function deploy(): Promise<void> {
  await deployments.deploy({ name: NAME, source, engine: { engine: "transformers" } });
  const { signal, leave } = leaving();
  for await (const { deployment } of deployments.watchDeployment({ name: NAME }, { signal })) {
    if (deployment?.state === DeploymentState.FAILED) throw new Error(deployment.message);
    if (deployment?.state === DeploymentState.AVAILABLE) break;
  }
  leave();
}

async function stream(): Promise<string> {
  let text = "";
  for await (const { event } of inference.generate(request(6), { timeoutMs: 60_000 })) {
    if (event.case === "tokens") text += event.value.text;
  }
  return text;
}

// Errors are told apart by their reason, never by their message.
async function reasonOf(wrong: GenerateRequest): Promise<string> {
  try {
    for await (const _ of inference.generate(wrong));
  } catch (error) {
    const found = ConnectError.from(error);
    return `${Code[found.code]} ${found.findDetails(ErrorInfoSchema)[0]?.reason}`;
  }
  return "none";
}

// Leaving the call cancels the generation.
async function cancel(): Promise<string> {
  const { signal, leave } = leaving();
  try {
    for await (const { event } of inference.generate(request(400), { signal })) {
      if (event.case === "tokens") leave();
    }
  } catch (error) {
    return Code[ConnectError.from(error).code]!;
  }
  return "none";
}

// Breaks a stream off in the middle, and reads on with the tokens that it has.
async function resume(): Promise<string> {
  const begun = request(6, { requestId: `${NAME}-${process.pid}`, linger: durationFromMs(30_000) });
  const tokenIds: number[] = [];
  let [text, identity, next] = ["", "", 0n];
  const { signal, leave } = leaving();
  for await (const { sequence, event } of inference.generate(begun, { signal })) {
    next = sequence + 1n;
    if (event.case === "started") identity = event.value.identity;
    if (event.case !== "tokens") continue;
    tokenIds.push(...event.value.tokenIds);
    text += event.value.text;
    break; // as if the connection had been lost
  }
  leave();
  begun.continuation = create(ContinuationSchema, { tokenIds, identity });
  begun.resumeFromSequence = next;
  for await (const { event } of inference.generate(begun)) {
    if (event.case === "tokens") text += event.value.text;
  }
  return text;
}

await deploy();
console.log(`streamed: ${await stream()}`);
console.log(`refused: ${await reasonOf(request(4, { deployment: "nobody" }))}`);
console.log(`cancelled: ${await cancel()}`);
console.log(`resumed: ${await resume()}`);
await deployments.deleteDeployment({ name: NAME });
sessionManager.abort(); // an open connection keeps the process
