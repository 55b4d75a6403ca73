import { signal } from "@preact/signals";

const text = signal("");

/** Narrows what a page lists. */
export function Search() {
  return (
    <span class="grow row">
      <input
        class="input"
        type="search"
        data-search
        aria-label="Filter"
        placeholder="Filter  /"
        style={{ maxWidth: "240px", marginLeft: "auto" }}
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
      />
    </span>
  );
}

/** Whether something is among what one looks for. */
export function searched(...said: readonly string[]): boolean {
  const wanted = text.value.trim().toLowerCase();
  return wanted === "" || said.some((one) => one.toLowerCase().includes(wanted));
}
