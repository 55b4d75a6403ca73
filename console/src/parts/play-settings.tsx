import type { Signal } from "@preact/signals";
import type { GetModelResponse } from "../gen/serverlessllm/v1/model_service_pb";
import type { Written } from "../state/settings";

interface Props {
  written: Signal<Written>;
  chat: Signal<boolean>;
  model: GetModelResponse | undefined;
  failed: string;
}

const NUMBERS: readonly (readonly [keyof Written, string, string])[] = [
  ["temperature", "Temperature", "1"],
  ["maxTokens", "Max tokens", "what the context leaves"],
  ["topP", "Top p", "1"],
  ["topK", "Top k", "all"],
  ["seed", "Seed", "random"],
  ["priority", "Priority", "0"],
];

export function PlaySettings({ written, chat, model, failed }: Props) {
  const field = (name: keyof Written) => ({
    value: written.value[name],
    onInput: (event: { currentTarget: { value: string } }) =>
      (written.value = { ...written.value, [name]: event.currentTarget.value }),
  });
  return (
    <section class="card settings" aria-label="Parameters">
      {failed && (
        <p class="note bad" role="alert">
          {failed}
        </p>
      )}
      <label class="check">
        <input
          type="checkbox"
          checked={chat.value}
          onChange={(event) => (chat.value = event.currentTarget.checked)}
        />
        <span>
          Conversation
          {model?.chatTemplate === "" && <small class="muted"> (it has no chat template)</small>}
        </span>
      </label>
      {chat.value && (
        <label class="field">
          <span>System</span>
          <textarea class="input" rows={2} {...field("system")} />
        </label>
      )}
      <div class="grid2">
        {NUMBERS.map(([name, label, placeholder]) => (
          <label key={name} class="field">
            <span>{label}</span>
            <input class="input" inputMode="decimal" placeholder={placeholder} {...field(name)} />
          </label>
        ))}
      </div>
      <label class="field">
        <span>Stop, one a line</span>
        <textarea class="input mono" rows={1} {...field("stop")} />
      </label>
      {chat.value && (
        <label class="field">
          <span>Tools, as OpenAI writes them</span>
          <textarea
            class="input mono"
            rows={5}
            spellcheck={false}
            placeholder={'[{"name": "weather", "parameters": {"type": "object"}}]'}
            {...field("tools")}
          />
          {model && !model.takesTools && <small>The chat template tells the model of none.</small>}
        </label>
      )}
    </section>
  );
}
