/** Work that goes on while one looks at something else. */

import { signal } from "@preact/signals";
import { reasonOf } from "../api";

interface Toast {
  id: number;
  title: string;
  text: string;
  state: "going" | "done" | "failed";
}

const SHOWN_MS = 6_000;
const toasts = signal<readonly Toast[]>([]);
let number = 0;

function put(toast: Toast): void {
  const others = toasts.value.filter((one) => one.id !== toast.id);
  toasts.value = [...others, toast].sort((a, b) => a.id - b.id).slice(-5);
}

function drop(id: number): void {
  toasts.value = toasts.value.filter((one) => one.id !== id);
}

/** Shows what a stream says until it ends. */
export async function follow<T>(
  title: string,
  stream: AsyncIterable<T>,
  words: (message: T) => string,
  end: string,
): Promise<void> {
  number += 1;
  const toast: Toast = { id: number, title, text: "…", state: "going" };
  put(toast);
  let said = "";
  try {
    for await (const message of stream) {
      said = words(message) || said;
      put({ ...toast, text: said });
    }
    put({ ...toast, text: end || said, state: "done" });
    setTimeout(() => drop(toast.id), SHOWN_MS);
  } catch (error) {
    put({ ...toast, text: reasonOf(error), state: "failed" });
  }
}

/** Says something that is done. */
export function say(title: string, text: string): void {
  number += 1;
  const toast: Toast = { id: number, title, text, state: "done" };
  put(toast);
  setTimeout(() => drop(toast.id), SHOWN_MS);
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.value.map((toast) => (
        <div key={toast.id} class={`toast ${toast.state === "failed" ? "bad" : ""}`}>
          <div class="grow">
            <h2>{toast.title}</h2>
            <p class={toast.state === "failed" ? "danger" : "quiet"}>{toast.text}</p>
          </div>
          <button
            type="button"
            class="button plain small"
            aria-label="Dismiss"
            onClick={() => drop(toast.id)}
          >
            ✕
          </button>
        </div>
      ))}
    </div>
  );
}
