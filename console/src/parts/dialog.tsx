/** One dialog at a time, over the page. */

import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { reasonOf } from "../api";

const shown = signal<ComponentChildren>(null);

export function open(content: ComponentChildren): void {
  shown.value = content;
}

export function close(): void {
  shown.value = null;
}

export function isOpen(): boolean {
  return shown.peek() !== null;
}

export function DialogHost() {
  const element = useRef<HTMLDialogElement>(null);
  const content = shown.value;
  useEffect(() => {
    if (content !== null && !element.current?.open) element.current?.showModal();
  }, [content]);
  if (content === null) return null;
  return (
    <dialog ref={element} onClose={close} aria-labelledby="dialog-title">
      {content}
    </dialog>
  );
}

interface DialogProps {
  title: string;
  children: ComponentChildren;
  onSubmit?: (event: SubmitEvent) => void;
}

export function Dialog({ title, children, onSubmit }: DialogProps) {
  return (
    <form
      method="dialog"
      onSubmit={(event) => {
        event.preventDefault();
        onSubmit?.(event as unknown as SubmitEvent);
      }}
    >
      <h1 id="dialog-title">{title}</h1>
      {children}
    </form>
  );
}

interface ConfirmProps {
  title: string;
  /** What the button says. */
  verb: string;
  dangerous?: boolean;
  children: ComponentChildren;
  /** Does it; the dialog closes then. What it throws is shown. */
  action: (form: FormData) => Promise<unknown> | void;
}

/** Asks before anything is done. */
export function Confirm({ title, verb, dangerous, children, action }: ConfirmProps) {
  const [failed, setFailed] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async (event: SubmitEvent) => {
    const form = new FormData(event.target as HTMLFormElement);
    setBusy(true);
    setFailed("");
    try {
      await action(form);
      close();
    } catch (error) {
      setFailed(reasonOf(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title={title} onSubmit={(event) => void submit(event)}>
      {children}
      {failed && (
        <p class="note bad" role="alert">
          {failed}
        </p>
      )}
      <div class="actions">
        <button type="button" class="button" onClick={close}>
          Cancel
        </button>
        <button class={`button ${dangerous ? "dangerous" : "primary"}`} disabled={busy}>
          {busy ? "…" : verb}
        </button>
      </div>
    </Dialog>
  );
}
