import type { MessageInitShape } from "@bufbuild/protobuf";
import { deployments, models, requestId } from "../api";
import type { Deployment } from "../gen/serverlessllm/v1/deployment_service_pb";
import type { EngineConfigSchema } from "../gen/serverlessllm/v1/types_pb";
import { seconds } from "../format";
import { Confirm } from "../parts/dialog";
import { say } from "../parts/toasts";
import { go } from "../route";
import { refresh } from "../state/catalog";
import { durationOf, textOf, wholeOf } from "./fields";

/** A new deployment, or another policy for one that is there. */
export function DeployDialog({ before }: { before?: Deployment }) {
  const { engine, scaling } = before ?? {};
  if (before?.base) return <AdapterDialog before={before} />;
  return (
    <Confirm
      title={before ? `Change ${before.name}` : "Deploy a model"}
      verb={before ? "Change" : "Deploy"}
      action={(form) => deploy(form, before)}
    >
      {before ? (
        <p class="note">
          <span class="mono">{before.source}</span>
          <br />
          Where this changes how the model is run, instances are replaced as others get ready.
        </p>
      ) : (
        <>
          <Text name="name" label="Name" hint="a-z, 0-9 and . _ -" required />
          <Text
            name="source"
            label="Source"
            hint="file:///models/tiny, hf://organisation/model, s3://…, gs://…, az://…, https://…"
            required
          />
        </>
      )}
      <div class="grid2">
        <label class="field">
          <span>Engine</span>
          <select class="input" name="engine" value={engine?.engine ?? ""}>
            <option value="">auto</option>
            <option>vllm</option>
            <option>transformers</option>
          </select>
        </label>
        <label class="field">
          <span>Dtype</span>
          <select class="input" name="dtype" value={engine?.dtype ?? ""} disabled={!!before}>
            <option value="">as stored</option>
            <option>bfloat16</option>
            <option>float16</option>
            <option>float32</option>
          </select>
        </label>
        <Text name="min" label="Replicas at least" value={scaling?.minReplicas} placeholder="0" />
        <Text name="max" label="Replicas at most" value={scaling?.maxReplicas} placeholder="1" />
        <Text
          name="keep"
          label="Keep alive (seconds)"
          value={seconds(scaling?.keepAlive)}
          placeholder="60"
        />
        <Text
          name="concurrency"
          label="Requests at once"
          value={engine?.maxConcurrency}
          placeholder="64"
        />
        <Text name="kv" label="KV cache (tokens)" value={engine?.kvCacheTokens} placeholder="8192" />
        <Text
          name="target"
          label="Start another beyond"
          value={scaling?.targetConcurrency}
          placeholder="requests at once"
        />
        <Text name="tools" label="Tool parser" value={engine?.toolParser} placeholder="none" />
        <Text
          name="reasoning"
          label="Reasoning parser"
          value={engine?.reasoningParser}
          placeholder="none"
        />
        <Text
          name="adapters"
          label="Adapters at once"
          value={engine?.maxAdapters || undefined}
          placeholder="none"
        />
        <Text
          name="devices"
          label="Devices of an instance"
          value={engine?.tensorParallel || undefined}
          placeholder="1"
        />
      </div>
      {!before && (
        <label class="check">
          <input type="checkbox" name="pack" />
          <span>Have each node keep a packed copy on its own disk</span>
        </label>
      )}
    </Confirm>
  );
}

/** Another policy for an adapter: the rest of it is its base's. */
function AdapterDialog({ before }: { before: Deployment }) {
  return (
    <Confirm title={`Change ${before.name}`} verb="Change" action={(form) => deploy(form, before)}>
      <p class="note">
        An adapter over <b>{before.base}</b>, whose instances serve it.
      </p>
      <Text
        name="keep"
        label="Keep alive (seconds)"
        value={seconds(before.scaling?.keepAlive)}
        placeholder="60"
      />
    </Confirm>
  );
}

interface TextProps {
  name: string;
  label: string;
  value?: string | number | undefined;
  hint?: string;
  placeholder?: string;
  required?: boolean;
}

function Text({ name, label, value, hint, placeholder, required }: TextProps) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        class="input"
        name={name}
        defaultValue={value === undefined ? "" : String(value)}
        placeholder={placeholder}
        required={required}
        autoComplete="off"
        spellcheck={false}
      />
      {hint && <small>{hint}</small>}
    </label>
  );
}

async function deploy(form: FormData, before: Deployment | undefined): Promise<void> {
  const name = before?.name ?? textOf(form.get("name"));
  await deployments.deploy({
    requestId: requestId(),
    name,
    source: before?.source ?? textOf(form.get("source")),
    // What is not asked for stays as it is: a deployment is told whole.
    base: before?.base ?? "",
    chatTemplate: await templateOf(before),
    imageHosts: before?.imageHosts ?? [],
    engine: before?.base ? { dtype: before.engine!.dtype, pack: before.engine!.pack } : engineOf(form, before),
    scaling: {
      minReplicas: wholeOf(form.get("min"), "Replicas at least"),
      maxReplicas: wholeOf(form.get("max"), "Replicas at most"),
      keepAlive: durationOf(form.get("keep"), "Keep alive"),
      targetConcurrency: wholeOf(form.get("target"), "Start another beyond"),
      learnKeepAlive: before?.scaling?.learnKeepAlive,
      targetTimePerToken: before?.scaling?.targetTimePerToken,
    },
  });
  say(name, before ? "was changed" : "is deployed; its weights are on their way to a node");
  await refresh();
  go("deployments", name);
}

function engineOf(form: FormData, before: Deployment | undefined): MessageInitShape<typeof EngineConfigSchema> {
  return {
    engine: textOf(form.get("engine")),
    dtype: before?.engine?.dtype ?? textOf(form.get("dtype")),
    kvCacheTokens: wholeOf(form.get("kv"), "KV cache"),
    maxConcurrency: wholeOf(form.get("concurrency"), "Requests at once"),
    pack: before?.engine?.pack ?? form.get("pack") !== null,
    toolParser: textOf(form.get("tools")),
    reasoningParser: textOf(form.get("reasoning")),
    maxAdapters: wholeOf(form.get("adapters"), "Adapters at once") ?? 0,
    maxAdapterRank: before?.engine?.maxAdapterRank,
    tensorParallel: wholeOf(form.get("devices"), "Devices of an instance") ?? 0,
    expertMemoryBytes: before?.engine?.expertMemoryBytes,
  };
}

/** The template that a deployment has of its own; empty if it has none. */
async function templateOf(before: Deployment | undefined): Promise<string> {
  if (!before) return "";
  const model = await models.getModel({ deployment: before.name });
  return model.ownChatTemplate ? model.chatTemplate : "";
}
