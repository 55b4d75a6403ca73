/** The key that the page shows with each call: kept for as long as its tab is open, and no longer. */

import { signal } from "@preact/signals";

const PLACE = "sllm.key";

export const key = sessionStorage.getItem(PLACE) ?? "";

/** Whether the control plane asks who is calling, and does not know it by this key. */
export const asked = signal(false);

export function KeyForm() {
  if (!asked.value) return null;
  return (
    <form class="note row" onSubmit={keep}>
      <label class="grow row">
        {key === "" ? "This cluster asks for a key." : "This key does not count here."}
        <input class="input" type="password" name="key" aria-label="Key" autocomplete="off" required />
      </label>
      <button class="button primary">Show it</button>
    </form>
  );
}

function keep(event: SubmitEvent): void {
  event.preventDefault();
  const given = new FormData(event.currentTarget as HTMLFormElement).get("key");
  sessionStorage.setItem(PLACE, String(given).trim());
  location.reload();
}
