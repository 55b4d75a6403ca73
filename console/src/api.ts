/** The control plane's services, over Connect at the page's own origin. */

import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { ClusterService } from "./gen/serverlessllm/v1/cluster_service_pb";
import { DeploymentService } from "./gen/serverlessllm/v1/deployment_service_pb";
import { InferenceService } from "./gen/serverlessllm/v1/inference_service_pb";
import { ModelService } from "./gen/serverlessllm/v1/model_service_pb";
import { key } from "./key";

const showKey: Interceptor = (next) => (request) => {
  if (key !== "") request.header.set("authorization", `Bearer ${key}`);
  return next(request);
};

const transport = createConnectTransport({
  baseUrl: new URL(".", document.baseURI).href.replace(/\/$/, ""),
  useBinaryFormat: true,
  interceptors: [showKey],
});

export const cluster = createClient(ClusterService, transport);
export const deployments = createClient(DeploymentService, transport);
export const inference = createClient(InferenceService, transport);
export const models = createClient(ModelService, transport);

/** An id for a call that changes something, so that it may be repeated. */
export function requestId(): string {
  // randomUUID is there on secure origins alone.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Whether a call has failed because nobody knows who makes it. */
export function isUnknown(error: unknown): boolean {
  return ConnectError.from(error).code === Code.Unauthenticated;
}

/** Why a call has failed, in words; empty if the page itself has ended it. */
export function reasonOf(error: unknown): string {
  if (error instanceof DOMException && error.name === "AbortError") return "";
  const failed = ConnectError.from(error);
  if (failed.code === Code.Canceled) return "";
  return failed.rawMessage || Code[failed.code];
}
