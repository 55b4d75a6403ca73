import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { models, reasonOf } from "../api";
import type { GetModelResponse } from "../gen/serverlessllm/v1/model_service_pb";
import { ModelTask } from "../gen/serverlessllm/v1/types_pb";
import { count } from "../format";
import { PlaySettings } from "../parts/play-settings";
import { TurnView } from "../parts/turn";
import { go } from "../route";
import { catalog } from "../state/catalog";
import { answer, busy, forget, say, stop, turns } from "../state/chat";
import { byName } from "../state/entries";
import { FRESH, read, type Settings, type Written } from "../state/settings";

/** A conversation with any deployment. */
export function PlaygroundView({ deployment }: { deployment: string }) {
  const names = [...catalog.value.values()]
    .filter((one) => (one.model?.purpose?.task ?? 0) <= ModelTask.GENERATE)
    .map((one) => one.name)
    .sort(byName);
  const name = deployment || names[0] || "";
  const model = useModel(name);
  const written = useSignal<Written>(FRESH);
  const chat = useSignal(true);
  const failed = useSignal("");
  useEffect(forget, [name]);
  useEffect(() => {
    if (model.value) chat.value = model.value.chatTemplate !== "";
  }, [model.value]);

  const act = (what: (settings: Settings) => Promise<void>) => {
    try {
      const settings = read(written.value, chat.value);
      failed.value = "";
      void what(settings);
      return true;
    } catch (error) {
      failed.value = reasonOf(error);
      return false;
    }
  };
  return (
    <>
      <div class="head">
        <h1>Playground</h1>
        <select
          class="input"
          aria-label="Deployment"
          style={{ width: "auto" }}
          value={name}
          onChange={(event) => go("playground", event.currentTarget.value)}
        >
          {names.map((one) => (
            <option key={one}>{one}</option>
          ))}
        </select>
        <span class="muted grow cut phone-off">{model.value && about(model.value)}</span>
        <button type="button" class="button" onClick={forget} disabled={turns.value.length === 0}>
          Start anew
        </button>
      </div>
      {names.length === 0 ? (
        <p class="card empty">Nothing is deployed that generates text.</p>
      ) : (
        <div class="play">
          <Talk
            name={name}
            onSay={(text) => act((settings) => say(text, name, settings))}
            onResults={() => act((settings) => answer(name, settings))}
          />
          <PlaySettings written={written} chat={chat} model={model.value} failed={failed.value} />
        </div>
      )}
    </>
  );
}

function about(model: GetModelResponse): string {
  return `${model.info?.architecture} on ${model.engine}, ${count(model.contextTokens)} tokens of context`;
}

function useModel(name: string) {
  const found = useSignal<GetModelResponse | undefined>(undefined);
  useEffect(() => {
    found.value = undefined;
    if (!name) return;
    const leave = new AbortController();
    models
      .getModel({ deployment: name }, { signal: leave.signal })
      .then((model) => (found.value = model))
      .catch(() => undefined); // It says so itself, once it is asked something.
    return () => leave.abort();
  }, [name]);
  return found;
}

interface TalkProps {
  name: string;
  onSay: (text: string) => boolean;
  onResults: () => void;
}

function Talk({ name, onSay, onResults }: TalkProps) {
  const list = useRef<HTMLDivElement>(null);
  const said = turns.value;
  useEffect(() => {
    const element = list.current;
    // Who has scrolled up reads there.
    if (element && element.scrollHeight - element.scrollTop - element.clientHeight < 160) {
      element.scrollTop = element.scrollHeight;
    }
  }, [said]);
  return (
    <section class="card talk" aria-label="Conversation">
      <div class="said" ref={list} aria-live="polite" aria-busy={busy.value}>
        {said.length === 0 && (
          <p class="empty">
            Say something to {name}. If nothing of it runs, you see it start.
          </p>
        )}
        {said.map((one, index) => (
          <TurnView key={one.id} turn={one} latest={index === said.length - 1} onResults={onResults} />
        ))}
      </div>
      <Ask onSay={onSay} />
    </section>
  );
}

function Ask({ onSay }: { onSay: (text: string) => boolean }) {
  const field = useRef<HTMLTextAreaElement>(null);
  const send = () => {
    const text = field.current?.value ?? "";
    if (text.trim() === "" || busy.value) return;
    if (onSay(text) && field.current) field.current.value = "";
  };
  return (
    <form
      class="ask"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <textarea
        class="input"
        ref={field}
        rows={1}
        data-search
        aria-label="What to say"
        placeholder="Say something. Enter sends, Shift+Enter is a new line."
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            send();
          }
        }}
      />
      {busy.value ? (
        <button type="button" class="button" onClick={stop}>
          Stop
        </button>
      ) : (
        <button class="button primary">Send</button>
      )}
    </form>
  );
}
